//! Words of people and programs: configuration and control socket.

use std::path::Path;

use sidepath::{
    admin::protocol::{QUESTION_BYTES_MAX, Question},
    config,
};

/// A line of the control socket is a question or is not; a question survives being asked again.
pub(crate) fn admin(data: &[u8]) {
    let line = String::from_utf8_lossy(&data[..data.len().min(QUESTION_BYTES_MAX)]);
    let Ok(question) = serde_json::from_str::<Question>(&line) else { return };
    let again = serde_json::to_string(&question).expect("a question can be asked");
    assert!(!again.contains('\n'), "one line each");
    let back: Question = serde_json::from_str(&again).expect("what we ask is understood");
    assert_eq!((back.version, back.verb), (question.version, question.verb));
}

/// A text is a configuration or comes with at least one error; every problem can be shown, and
/// points into the text.
pub(crate) fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let report = match config::parse(Path::new("/nonexistent/sidepath.toml"), text) {
        Ok((config, report)) => {
            assert!(!report.has_errors(), "taken, and yet wrong");
            assert!(config.network.is_some() || config.storage.is_some());
            assert!(config.peers.iter().all(|peer| peer.id != config.node.id));
            report
        }
        Err(report) => {
            assert!(report.has_errors(), "refused without a reason");
            report
        }
    };
    for problem in report.problems() {
        let Some(span) = &problem.span else { continue };
        assert!(text.get(span.start..).is_some(), "{problem:?} points outside the text");
        assert!(report.position(problem).is_some());
    }
    assert!(!report.to_string().is_empty());
}
