//! Where a command's words go: data to stdout, talk to stderr.
//!
//! Colour is added only when the stream is a terminal and nobody forbade it, and only to words
//! that say the same without it. Writing to a pipe nobody reads ends the command quietly.

use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use clap::ColorChoice;
use serde::Serialize;

use super::{Failure, Outcome};

/// How a word is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Good,
    Warn,
    Bad,
    Dim,
    Strong,
}

/// Both streams of a command.
#[derive(Debug)]
pub(crate) struct Out {
    stdout: BufWriter<Stdout>,
    colour_out: bool,
    colour_err: bool,
    live: bool,
}

impl Out {
    pub(super) fn new(choice: ColorChoice) -> Self {
        let quiet = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let colour = |terminal: bool| match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => terminal && !quiet,
        };
        Self {
            stdout: BufWriter::new(io::stdout()),
            colour_out: colour(io::stdout().is_terminal()),
            colour_err: colour(io::stderr().is_terminal()),
            live: io::stdout().is_terminal()
                && std::env::var_os("TERM").is_some_and(|term| term != "dumb"),
        }
    }

    /// Whether stdout is a terminal that can be redrawn.
    pub(crate) fn is_live(&self) -> bool {
        self.live
    }

    /// Columns and rows of the terminal; 100 and 40 when there is none.
    pub(crate) fn size(&self) -> (usize, usize) {
        rustix::termios::tcgetwinsize(io::stdout())
            .ok()
            .map(|size| (usize::from(size.ws_col), usize::from(size.ws_row)))
            .filter(|(columns, rows)| *columns > 0 && *rows > 0)
            .unwrap_or((100, 40))
    }

    /// A word for stdout, coloured where colours are.
    pub(crate) fn paint(&self, tone: Tone, text: impl std::fmt::Display) -> String {
        paint(self.colour_out, tone, text)
    }

    /// One line of data.
    pub(crate) fn line(&mut self, text: impl std::fmt::Display) -> Outcome {
        writeln!(self.stdout, "{text}").map_err(|e| broken(&e))
    }

    /// Bytes of data as they are.
    pub(crate) fn raw(&mut self, text: &str) -> Outcome {
        self.stdout.write_all(text.as_bytes()).map_err(|e| broken(&e))
    }

    /// One object, on one line when `compact`.
    pub(crate) fn json(&mut self, value: &impl Serialize, compact: bool) -> Outcome {
        let text = if compact {
            serde_json::to_string(value)
        } else {
            serde_json::to_string_pretty(value)
        };
        let text = text.map_err(|e| Failure::failed(format!("cannot write JSON: {e}")))?;
        self.line(text)
    }

    /// Hands everything to the reader.
    pub(crate) fn flush(&mut self) -> Outcome {
        self.stdout.flush().map_err(|e| broken(&e))
    }

    /// One line of talk; nobody listening is no error.
    pub(crate) fn talk(&self, text: impl std::fmt::Display) {
        let _ = writeln!(io::stderr(), "{text}");
    }

    /// A line that replaces the one before it, when stderr is a terminal.
    pub(crate) fn progress(&self, text: &str) {
        if io::stderr().is_terminal() {
            let _ = write!(io::stderr(), "\r\x1b[K{text}");
        }
    }

    /// Removes the progress line.
    pub(crate) fn progress_end(&self) {
        self.progress("");
    }

    pub(super) fn failure(&self, failure: &Failure) {
        if failure.whole {
            self.talk(&failure.message);
        } else if !failure.message.is_empty() {
            let word = paint(self.colour_err, Tone::Bad, "error:");
            self.talk(format!("{word} {}", failure.message));
        }
        if let Some(hint) = &failure.hint {
            let word = paint(self.colour_err, Tone::Good, "hint:");
            self.talk(format!("{word} {hint}"));
        }
    }
}

fn paint(on: bool, tone: Tone, text: impl std::fmt::Display) -> String {
    if !on {
        return text.to_string();
    }
    let code = match tone {
        Tone::Good => "32",
        Tone::Warn => "33",
        Tone::Bad => "31",
        Tone::Dim => "2",
        Tone::Strong => "1",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// A reader that went away is the end of the command, not its failure.
fn broken(error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::BrokenPipe {
        Failure::told(0)
    } else {
        Failure::failed(format!("cannot write to stdout: {error}"))
    }
}
