//! `sidepath config check`: says everything that is wrong with a configuration, and where.

use std::path::PathBuf;

use serde::Serialize;

use super::{Failure, Out, Outcome};
use crate::config::{
    self,
    report::{Report, Severity},
};

/// Look at configurations.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Verb {
    /// Check a configuration without touching anything
    Check {
        /// The configuration
        file: PathBuf,
        /// One object instead of text
        #[arg(long)]
        json: bool,
    },
}

#[derive(Serialize)]
struct Checked {
    file: String,
    valid: bool,
    problems: Vec<Problem>,
}

#[derive(Serialize)]
struct Problem {
    severity: &'static str,
    line: Option<usize>,
    column: Option<usize>,
    message: String,
    hint: Option<String>,
}

pub(super) fn run(verb: &Verb, out: &mut Out) -> Outcome {
    let Verb::Check { file, json } = verb;
    let loaded = config::load(file);
    if *json {
        let report = match &loaded {
            Ok((_, report)) | Err(report) => report,
        };
        out.json(&as_json(report, loaded.is_ok()), false)?;
        return loaded.map(|_| ()).map_err(|_| Failure::told(2));
    }
    let (config, warnings) = loaded.map_err(|report| Failure::report(&report))?;
    if warnings.count(Severity::Warning) > 0 {
        out.talk(&warnings);
    }
    let paths = match (&config.network, &config.storage) {
        (Some(_), Some(_)) => "network and storage",
        (Some(_), None) => "network only",
        (None, _) => "storage only",
    };
    let peers = match config.peers.len() {
        1 => "1 peer".to_string(),
        n => format!("{n} peers"),
    };
    out.line(format!(
        "{}: ok, node {} `{}`, {peers}, {paths}",
        file.display(),
        config.node.id,
        config.node.name
    ))
}

fn as_json(report: &Report, valid: bool) -> Checked {
    let problems = report
        .problems()
        .map(|problem| {
            let position = report.position(problem);
            Problem {
                severity: match problem.severity {
                    Severity::Error => "error",
                    Severity::Warning => "warning",
                },
                line: position.map(|(line, _)| line),
                column: position.map(|(_, column)| column),
                message: problem.message.clone(),
                hint: problem.hint.clone(),
            }
        })
        .collect();
    Checked { file: report.file.display().to_string(), valid, problems }
}
