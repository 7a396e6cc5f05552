//! `PEER:NAME@VERSION`, and failures of pairs in words.

use std::str::FromStr;

use crate::{
    backup::pair::PairError,
    cli::{Failure, session},
    sessions::{Refusal, SessionError},
};

/// Longest name of a backup.
const NAME_MAX: usize = 64;

/// Where a backup is: `PEER:NAME` or `PEER:NAME@VERSION`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct Place {
    pub(in crate::cli) peer: String,
    pub(in crate::cli) name: String,
    pub(in crate::cli) version: Option<u32>,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((peer, rest)) = text.split_once(':').filter(|(peer, _)| !peer.is_empty()) else {
            return Err(format!("`{text}` is not PEER:NAME"));
        };
        let (name, version) = match rest.split_once('@') {
            None => (rest, None),
            Some((name, version)) => {
                let number = version.parse().ok().filter(|n| *n > 0);
                let number =
                    number.ok_or_else(|| format!("`{version}` is no version: 1, 2, ..."))?;
                (name, Some(number))
            }
        };
        let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.is_empty()
            || name.len() > NAME_MAX
            || name.starts_with(['.', '-'])
            || !name.chars().all(fine)
        {
            return Err(format!(
                "`{name}` is no name for a backup: 1 to {NAME_MAX} letters, digits, `.`, `_` and \
                 `-`, the first a letter, a digit or `_`"
            ));
        }
        Ok(Self { peer: peer.into(), name: name.into(), version })
    }
}

/// A pair's failure, with a next step.
pub(in crate::cli) fn failure(error: &PairError) -> Failure {
    let words = error.to_string();
    match error {
        PairError::Session(SessionError::Refused { reason: Refusal::NoSuchService, .. }) => {
            Failure::failed("nobody there receives backups").hint(
                "on the peer: `sidepath backup serve --store FOLDER`, or [backup_store] in its \
                 configuration",
            )
        }
        PairError::Session(error) => session::failure(error),
        PairError::Said(complaint) => {
            Failure::of(complaint.input, words).maybe_hint(complaint.hint.as_ref())
        }
        PairError::Here { hint, input, .. } => Failure::of(*input, words).maybe_hint(hint.as_ref()),
        PairError::Nonsense(_) => {
            Failure::failed(words).hint("use the same release of sidepath on both nodes")
        }
        PairError::NoPath(_) => {
            Failure::failed(words).hint("`sidepath status` shows what ails the storage path")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_understood_or_refused_with_the_reason() {
        let place = |text: &str| text.parse::<Place>();
        let wanted = |peer: &str, name: &str, version| {
            Ok(Place { peer: peer.into(), name: name.into(), version })
        };
        assert_eq!(place("beta:etc"), wanted("beta", "etc", None));
        assert_eq!(place("2:db.main_1-x@12"), wanted("2", "db.main_1-x", Some(12)));
        for bad in ["etc", ":etc", "beta:", "beta:.x", "beta:-x", "beta:a/b", "beta:a b", "beta:a@"]
        {
            assert!(place(bad).is_err(), "{bad}");
        }
        for bad in ["beta:a@0", "beta:a@-1", "beta:a@x", "beta:a@1@2"] {
            assert!(place(bad).unwrap_err().contains("no version"), "{bad}");
        }
        assert!(place(&format!("beta:{}", "x".repeat(65))).is_err());
    }
}
