//! What is wrong with a configuration, shown where it is wrong.
//!
//! All problems of a file are collected and shown together, in the order of its lines, because an
//! operator who must run a check five times to find five mistakes stops running it.

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The configuration is refused.
    Error,
    /// It works, but probably not as meant.
    Warning,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// Bytes of the file it is about; `None` when it is about the file itself.
    pub span: Option<Range<usize>>,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Everything found in one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The file as the operator named it.
    pub file: PathBuf,
    text: String,
    problems: Vec<Problem>,
}

impl Report {
    /// A report that found nothing yet.
    #[must_use]
    pub fn new(file: &Path, text: &str) -> Self {
        Self { file: file.to_path_buf(), text: text.to_string(), problems: Vec::new() }
    }

    /// Whether the configuration is refused.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.count(Severity::Error) > 0
    }

    /// How many problems of a kind there are.
    #[must_use]
    pub fn count(&self, severity: Severity) -> usize {
        self.problems.iter().filter(|problem| problem.severity == severity).count()
    }

    /// Everything found, in the order of the file.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter()
    }

    /// Line and column, from 1, of the first byte of a problem; columns count characters.
    #[must_use]
    pub fn position(&self, problem: &Problem) -> Option<(usize, usize)> {
        // Spans come from the parser, which cuts between characters.
        let before = self.text.get(..problem.span.as_ref()?.start)?;
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Some((before.matches('\n').count() + 1, before[line_start..].chars().count() + 1))
    }

    /// The line, from 1, a span starts on.
    pub(super) fn line_of(&self, span: &Range<usize>) -> usize {
        self.text.get(..span.start).map_or(0, |before| before.matches('\n').count()) + 1
    }

    pub(super) fn error(&mut self, span: Range<usize>, message: impl Into<String>) {
        self.add(Severity::Error, Some(span), message.into(), None);
    }

    pub(super) fn error_hint(
        &mut self,
        span: Range<usize>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.add(Severity::Error, Some(span), message.into(), Some(hint.into()));
    }

    pub(super) fn warning(
        &mut self,
        span: Range<usize>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.add(Severity::Warning, Some(span), message.into(), Some(hint.into()));
    }

    pub(super) fn about_file(&mut self, message: impl Into<String>, hint: impl Into<String>) {
        self.add(Severity::Error, None, message.into(), Some(hint.into()));
    }

    fn add(
        &mut self,
        severity: Severity,
        span: Option<Range<usize>>,
        message: String,
        hint: Option<String>,
    ) {
        let at = span.as_ref().map_or(0, |span| span.start);
        let place = self
            .problems
            .partition_point(|known| known.span.as_ref().map_or(0, |span| span.start) <= at);
        self.problems.insert(place, Problem { severity, span, message, hint });
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            let word = match problem.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            };
            writeln!(f, "{word}: {}", problem.message)?;
            let (Some((line, column)), Some(span)) = (self.position(problem), &problem.span) else {
                writeln!(f, " --> {}", self.file.display())?;
                if let Some(hint) = &problem.hint {
                    writeln!(f, "  = hint: {hint}")?;
                }
                writeln!(f)?;
                continue;
            };
            let source = self.text.lines().nth(line - 1).unwrap_or_default();
            let width = line.to_string().len();
            // A tab in the margin under a tab keeps the caret below its word.
            let margin: String = source
                .chars()
                .take(column - 1)
                .map(|c| if c == '\t' { '\t' } else { ' ' })
                .collect();
            let marked = self.text.get(span.clone()).unwrap_or_default();
            let marked = marked.lines().next().unwrap_or_default().chars().count();
            writeln!(f, "{:width$}--> {}:{line}:{column}", "", self.file.display())?;
            writeln!(f, "{:width$} |", "")?;
            writeln!(f, "{line} | {source}")?;
            writeln!(f, "{:width$} | {margin}{}", "", "^".repeat(marked.max(1)))?;
            if let Some(hint) = &problem.hint {
                writeln!(f, "{:width$} = hint: {hint}", "")?;
            }
            writeln!(f)?;
        }
        let count = |severity, word: &str| match self.count(severity) {
            0 => None,
            1 => Some(format!("1 {word}")),
            n => Some(format!("{n} {word}s")),
        };
        let counts: Vec<_> = [count(Severity::Error, "error"), count(Severity::Warning, "warning")]
            .into_iter()
            .flatten()
            .collect();
        if counts.is_empty() {
            return write!(f, "no problems in {}", self.file.display());
        }
        write!(f, "{} in {}", counts.join(" and "), self.file.display())
    }
}

impl std::error::Error for Report {}

/// The known word closest to a wrong one, when it is close enough to be what was meant.
#[must_use]
pub fn closest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|word| {
            (strsim::damerau_levenshtein(&wrong.to_lowercase(), &word.to_lowercase()), word)
        })
        .filter(|(distance, word)| *distance <= (word.chars().count() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}
