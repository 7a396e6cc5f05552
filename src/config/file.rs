//! The words of a configuration file: TOML, and where each word stands.
//!
//! Nothing here knows what a word means. A [`Section`] hands out values by key, notes every
//! mistake of form in the report, and at the end complains about the keys nobody asked for, so
//! the list of known keys is the code that reads them and cannot fall behind it.

use std::{ops::Range, time::Duration};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    quantity,
    report::{Report, closest},
};

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Word<T> {
    pub(super) value: T,
    pub(super) span: Range<usize>,
}

impl<T> Word<T> {
    fn new<S>(from: &Spanned<S>, value: T) -> Self {
        Self { value, span: from.span() }
    }

    /// The same place, another value.
    pub(super) fn with<U>(&self, value: U) -> Word<U> {
        Word { value, span: self.span.clone() }
    }
}

/// One line of a table whose keys are names.
pub(super) struct Entry {
    pub(super) key: Word<String>,
    /// `None` when it is no text.
    pub(super) text: Option<Word<String>>,
    /// Of the value.
    pub(super) span: Range<usize>,
}

/// One table of the file.
pub(super) struct Section<'a, 'i> {
    /// As shown to people: `[node]`, `[[peer]]`.
    name: String,
    table: &'a DeTable<'i>,
    /// Where to point when a key is missing.
    pub(super) span: Range<usize>,
    asked: Vec<&'static str>,
}

/// Parses the text; mistakes of syntax go to the report, and what could be read comes back.
pub(super) fn parse<'i>(text: &'i str, report: &mut Report) -> Spanned<DeTable<'i>> {
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        report.error(error.span().unwrap_or(0..0), error.message());
    }
    table
}

impl<'a, 'i> Section<'a, 'i> {
    /// The file itself.
    pub(super) fn root(table: &'a Spanned<DeTable<'i>>) -> Self {
        Self { name: "the file".into(), table: table.get_ref(), span: 0..0, asked: Vec::new() }
    }

    /// A table below this one.
    pub(super) fn section(&mut self, key: &'static str, report: &mut Report) -> Option<Self> {
        let (span, value) = self.find(key)?;
        match value.get_ref() {
            DeValue::Table(table) => {
                Some(Self { name: format!("[{key}]"), table, span, asked: Vec::new() })
            }
            other => {
                report.error_hint(
                    value.span(),
                    format!("`{key}` is a section, not {}", kind(other)),
                    format!("write [{key}] on a line of its own"),
                );
                None
            }
        }
    }

    /// Tables of the form `[[key]]`.
    pub(super) fn sections(&mut self, key: &'static str, report: &mut Report) -> Vec<Self> {
        let Some((span, value)) = self.find(key) else { return Vec::new() };
        let hint = format!("write [[{key}]] on a line of its own, once for each");
        let DeValue::Array(array) = value.get_ref() else {
            report.error_hint(span, format!("`{key}` is a list of sections"), hint);
            return Vec::new();
        };
        let mut found = Vec::new();
        for (index, item) in array.iter().enumerate() {
            match item.get_ref() {
                DeValue::Table(table) => found.push(Self {
                    name: format!("[[{key}]] number {}", index + 1),
                    table,
                    span: item.span(),
                    asked: Vec::new(),
                }),
                other => report.error_hint(
                    item.span(),
                    format!("`{key}` is a list of sections, not {}", kind(other)),
                    hint.clone(),
                ),
            }
        }
        found
    }

    /// Every entry of the table: for tables whose keys are names.
    pub(super) fn entries(&self) -> Vec<Entry> {
        let mut all: Vec<_> = self
            .table
            .iter()
            .map(|(key, value)| {
                let text = value.get_ref().as_str().map(|text| Word::new(value, text.to_string()));
                Entry { key: Word::new(key, key.get_ref().to_string()), text, span: value.span() }
            })
            .collect();
        all.sort_by_key(|entry| entry.key.span.start);
        all
    }

    /// Whether a key is there at all; does not count as asking for it.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.get(key).is_some()
    }

    /// Where a key stands; does not count as asking for it.
    pub(super) fn key_span(&self, key: &str) -> Range<usize> {
        self.table.get_key_value(key).map_or_else(|| self.span.clone(), |(key, _)| key.span())
    }

    /// Says that a key is missing.
    pub(super) fn missing(&self, key: &str, example: &str, report: &mut Report) {
        report.error_hint(
            self.span.clone(),
            format!("{} needs `{key}`", self.name),
            format!("for example: {key} = {example}"),
        );
    }

    /// A string.
    pub(super) fn text(&mut self, key: &'static str, report: &mut Report) -> Option<Word<String>> {
        let (_, value) = self.find(key)?;
        match value.get_ref() {
            DeValue::String(text) => Some(Word::new(value, text.to_string())),
            other => {
                report.error_hint(
                    value.span(),
                    format!("`{key}` is a text, not {}", kind(other)),
                    "put it in \"quotes\"",
                );
                None
            }
        }
    }

    /// A string that must be there.
    pub(super) fn required_text(
        &mut self,
        key: &'static str,
        example: &str,
        report: &mut Report,
    ) -> Option<Word<String>> {
        if !self.has(key) {
            self.asked.push(key);
            self.missing(key, example, report);
        }
        self.text(key, report)
    }

    /// A whole number.
    pub(super) fn number(&mut self, key: &'static str, report: &mut Report) -> Option<Word<i64>> {
        let (_, value) = self.find(key)?;
        let number = integer(value.get_ref());
        if number.is_none() {
            report.error(
                value.span(),
                format!("`{key}` is a whole number, not {}", kind(value.get_ref())),
            );
        }
        number.map(|number| Word::new(value, number))
    }

    /// `true` or `false`.
    pub(super) fn switch(&mut self, key: &'static str, report: &mut Report) -> Option<Word<bool>> {
        let (_, value) = self.find(key)?;
        let DeValue::Boolean(on) = value.get_ref() else {
            report.error_hint(
                value.span(),
                format!("`{key}` is a switch, not {}", kind(value.get_ref())),
                "write true or false, without quotes",
            );
            return None;
        };
        Some(Word::new(value, *on))
    }

    /// A duration within bounds.
    pub(super) fn duration(
        &mut self,
        key: &'static str,
        bounds: std::ops::RangeInclusive<Duration>,
        report: &mut Report,
    ) -> Option<Word<Duration>> {
        let (_, value) = self.find(key)?;
        let text = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            other => {
                report.error_hint(
                    value.span(),
                    format!("`{key}` is a duration, not {}", kind(other)),
                    format!("write it with its unit, for example: {key} = \"10ms\""),
                );
                return None;
            }
        };
        match quantity::parse_duration(&text) {
            Ok(span) if bounds.contains(&span) => Some(Word::new(value, span)),
            Ok(span) => {
                report.error(
                    value.span(),
                    format!(
                        "`{key}` is {}, but must lie between {} and {}",
                        quantity::show_duration(span),
                        quantity::show_duration(*bounds.start()),
                        quantity::show_duration(*bounds.end())
                    ),
                );
                None
            }
            Err(why) => {
                report.error(value.span(), format!("`{key}`: {why}"));
                None
            }
        }
    }

    /// A size in bytes within bounds.
    pub(super) fn size(
        &mut self,
        key: &'static str,
        bounds: std::ops::RangeInclusive<u64>,
        report: &mut Report,
    ) -> Option<Word<u64>> {
        let (_, value) = self.find(key)?;
        let parsed = match value.get_ref() {
            DeValue::String(text) => quantity::parse_size(text),
            other => integer(other)
                .and_then(|number| u64::try_from(number).ok())
                .ok_or_else(|| format!("a size like \"64KiB\", not {}", kind(other))),
        };
        match parsed {
            Ok(bytes) if bounds.contains(&bytes) => Some(Word::new(value, bytes)),
            Ok(bytes) => {
                report.error(
                    value.span(),
                    format!(
                        "`{key}` is {}, but must lie between {} and {}",
                        quantity::show_size(bytes),
                        quantity::show_size(*bounds.start()),
                        quantity::show_size(*bounds.end())
                    ),
                );
                None
            }
            Err(why) => {
                report.error(value.span(), format!("`{key}`: {why}"));
                None
            }
        }
    }

    /// A list of strings.
    pub(super) fn texts(
        &mut self,
        key: &'static str,
        report: &mut Report,
    ) -> Option<Word<Vec<Word<String>>>> {
        let (_, value) = self.find(key)?;
        let DeValue::Array(array) = value.get_ref() else {
            report.error_hint(
                value.span(),
                format!("`{key}` is a list of texts, not {}", kind(value.get_ref())),
                format!("for example: {key} = [\"...\"]"),
            );
            return None;
        };
        let mut words = Vec::new();
        for item in array.iter() {
            match item.get_ref() {
                DeValue::String(text) => words.push(Word::new(item, text.to_string())),
                other => report.error(
                    item.span(),
                    format!("`{key}` is a list of texts, but this is {}", kind(other)),
                ),
            }
        }
        Some(Word::new(value, words))
    }

    /// A list of whole numbers and ranges: `[53, "5404-5412"]`, within `0..=max`.
    pub(super) fn numbers(
        &mut self,
        key: &'static str,
        max: u16,
        report: &mut Report,
    ) -> Option<Vec<u16>> {
        let (_, value) = self.find(key)?;
        let DeValue::Array(array) = value.get_ref() else {
            report.error_hint(
                value.span(),
                format!("`{key}` is a list of numbers, not {}", kind(value.get_ref())),
                format!("for example: {key} = [53, \"5404-5412\"]"),
            );
            return None;
        };
        let mut numbers = Vec::new();
        for item in array.iter() {
            let range = match item.get_ref() {
                DeValue::String(text) => text
                    .split_once('-')
                    .and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?))),
                other => integer(other).and_then(|n| u16::try_from(n).ok()).map(|n| (n, n)),
            };
            match range {
                Some((a, b)) if a <= b && b <= max => numbers.extend(a..=b),
                _ => report.error(
                    item.span(),
                    format!("`{key}` takes numbers from 0 to {max} and ranges like \"10-20\""),
                ),
            }
        }
        Some(numbers)
    }

    /// Complains about every key nobody asked for.
    pub(super) fn finish(self, report: &mut Report) {
        for key in self.table.keys() {
            let word = key.get_ref().as_ref();
            if self.asked.contains(&word) {
                continue;
            }
            let hint = match closest(word, self.asked.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("{} knows: {}", self.name, self.asked.join(", ")),
            };
            report.error_hint(key.span(), format!("unknown key `{word}` in {}", self.name), hint);
        }
    }

    fn find(&mut self, key: &'static str) -> Option<(Range<usize>, &'a Spanned<DeValue<'i>>)> {
        if !self.asked.contains(&key) {
            self.asked.push(key);
        }
        self.table.get_key_value(key).map(|(key, value)| (key.span(), value))
    }
}

fn integer(value: &DeValue<'_>) -> Option<i64> {
    let number = value.as_integer()?;
    i64::from_str_radix(number.as_str(), number.radix()).ok()
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "a switch",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    }
}
