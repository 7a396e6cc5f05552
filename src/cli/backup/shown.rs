//! What a backup or a restore shows on the way, on a terminal or as lines of JSON.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::{
    backup::send::{News, SoFar},
    cli::{Out, session::path_word},
    config::quantity::{show_duration, show_size},
};

/// How often progress is shown, and told as JSON.
const SHOW_EVERY: Duration = Duration::from_millis(200);
const TELL_EVERY: Duration = Duration::from_secs(1);

/// A line of `--json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
enum Told<'a> {
    Progress {
        entries: u64,
        bytes: u64,
        total_bytes: Option<u64>,
        sent_bytes: u64,
        seconds: f64,
        path: Option<&'static str>,
    },
    Problem {
        message: &'a str,
    },
    Again {
        message: String,
    },
    Resumed {
        bytes: u64,
    },
}

/// What is shown on the way.
#[derive(Debug)]
pub(in crate::cli) struct Shown {
    json: bool,
    began: Instant,
    shown: Option<Instant>,
    told: Instant,
    /// Why it was tried again the last time: told once.
    again: String,
}

impl Shown {
    pub(in crate::cli) fn new(json: bool) -> Self {
        let now = Instant::now();
        Self { json, began: now, shown: None, told: now, again: String::new() }
    }

    pub(in crate::cli) fn news(&mut self, news: &News<'_>, total: Option<u64>, out: &mut Out) {
        match news {
            News::SoFar(so_far) => self.so_far(so_far, total, out),
            News::Problem(message) => {
                self.say(&Told::Problem { message }, out, || format!("warning: {message}"));
            }
            News::Again(error) => {
                let message = error.to_string();
                if !self.json && std::mem::replace(&mut self.again, message.clone()) == message {
                    return;
                }
                let line = Told::Again { message: message.clone() };
                self.say(&line, out, || format!("interrupted: {message}; trying again"));
            }
            News::Resumed(bytes) => self.say(&Told::Resumed { bytes: *bytes }, out, || {
                format!("goes on where it was interrupted: {} are there", show_size(*bytes))
            }),
        }
    }

    fn say(&self, line: &Told<'_>, out: &mut Out, words: impl FnOnce() -> String) {
        if self.json {
            // A reader that went away ends the command at its last line.
            let _ = out.json(line, true).and_then(|()| out.flush());
        } else {
            out.progress_end();
            out.talk(words());
        }
    }

    fn so_far(&mut self, so_far: &SoFar, total: Option<u64>, out: &mut Out) {
        let seconds = self.began.elapsed().as_secs_f64();
        if self.json {
            if self.told.elapsed() >= TELL_EVERY {
                self.told = Instant::now();
                let line = Told::Progress {
                    entries: so_far.entries,
                    bytes: so_far.bytes,
                    total_bytes: total,
                    sent_bytes: so_far.sent,
                    seconds,
                    path: so_far.path.map(|path| path_word(Some(path))),
                };
                self.say(&line, out, String::new);
            }
        } else if self.shown.is_none_or(|at| at.elapsed() >= SHOW_EVERY) {
            self.shown = Some(Instant::now());
            out.progress(&progress(so_far, total, seconds));
        }
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "for people")]
fn progress(so_far: &SoFar, total: Option<u64>, seconds: f64) -> String {
    let rate = so_far.bytes as f64 / seconds.max(0.001);
    let left = total.filter(|total| *total > 0).map(|total| {
        let left = total.saturating_sub(so_far.bytes);
        let percent = 100 * so_far.bytes.min(total) / total;
        let eta = Duration::from_secs((left as f64 / rate.max(1.0)) as u64);
        format!(" of {} ({percent} %, {} left)", show_size(total), show_duration(eta))
    });
    let path = path_word(so_far.path);
    format!(
        "{} entries, {}{}, {}/s, {path}",
        so_far.entries,
        show_size(so_far.bytes),
        left.unwrap_or_default(),
        show_size(rate as u64),
    )
}
