//! Where media are, as the configuration says it.

use std::path::Path;

use volumes::media::Location;
use volumes::media::s3::Settings;

use super::{
    file::{Section, Word},
    report::Report,
};

/// What makes a location of a word: the configuration's folder, and `[storage.s3]`.
pub(super) struct Places<'a> {
    base: &'a Path,
    s3: Settings,
}

impl<'a> Places<'a> {
    pub(super) fn new(
        base: &'a Path,
        storage: Option<&mut Section<'_, '_>>,
        report: &mut Report,
    ) -> Self {
        let s3 = storage.and_then(|storage| storage.section("s3", report));
        Self { base, s3: s3.map(|s3| settings(s3, base, report)).unwrap_or_default() }
    }

    /// A path, from the configuration's folder, or a URL.
    pub(super) fn location(&self, word: &Word<String>, report: &mut Report) -> Option<Location> {
        match Location::parse(&word.value) {
            Ok(location) => Some(location.below(self.base).with_s3_defaults(&self.s3)),
            Err(error) => {
                let words = error.to_string();
                let (what, hint) =
                    words.split_once("; ").unwrap_or((&words, "see `sidepath volume`"));
                report.error_hint(word.span.clone(), what, hint);
                None
            }
        }
    }
}

/// `[storage.s3]`: what URLs of S3 leave out. Credentials stand in a file of their own.
fn settings(mut section: Section<'_, '_>, base: &Path, report: &mut Report) -> Settings {
    let span = section.span.clone();
    let endpoint = section.text("endpoint", report);
    let region = section.text("region", report);
    let path_style = section.switch("path_style", report);
    let credentials_file = section.text("credentials_file", report);
    let ca_file = section.text("ca_file", report);
    section.finish(report);
    let file = |word: Option<Word<String>>| {
        let path = base.join(word?.value);
        Some(std::path::absolute(&path).unwrap_or(path))
    };
    let settings = Settings {
        endpoint: endpoint.map(|word| word.value),
        region: region.map(|word| word.value),
        path_style: path_style.map(|word| word.value),
        ca_file: file(ca_file),
        credentials_file: file(credentials_file),
    };
    if let Err(error) = settings.check() {
        report.error(span, error.to_string());
    }
    settings
}
