//! `sidepath keygen`: makes the identity of a node.
//!
//! The private key goes to a file only its owner can read, which appears whole or not at all and
//! never replaces another: a lost private key is a node nobody knows any more. The public key is
//! the data of this command and goes to stdout.

use std::{
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use super::{Failure, Out, Outcome};
use crate::config::key;

/// Make a key pair.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where the private key goes (mode 0600); an existing file is never replaced
    #[arg(long, value_name = "FILE", default_value = "sidepath.key")]
    out: PathBuf,
}

pub(super) fn run(args: &Args, out: &mut Out) -> Outcome {
    let private = key::generate().map_err(Failure::failed)?;
    let public = key::public_of(&private).map_err(Failure::failed)?;
    let text = Zeroizing::new(format!("{}\n", key::encode(&private)));
    write(&args.out, text.as_bytes())?;
    out.talk(format!(
        "private key in {} (0600, keep it there); public key, for the peers' `public_key`:",
        args.out.display()
    ));
    out.line(key::encode(&public))
}

fn write(path: &Path, text: &[u8]) -> Outcome {
    let shown = path.display();
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let cannot = |e: &std::io::Error| match e.kind() {
        ErrorKind::AlreadyExists => Failure::input(format!("{shown} exists already"))
            .hint("choose another name with --out, or move the old key away first"),
        ErrorKind::NotFound | ErrorKind::NotADirectory => {
            Failure::input(format!("no folder {}", folder.display()))
                .hint(format!("mkdir -p {}", folder.display()))
        }
        ErrorKind::PermissionDenied => {
            Failure::input(format!("may not write to {}: permission denied", folder.display()))
                .hint("choose a place of yours with --out")
        }
        _ => Failure::failed(format!("cannot write {shown}: {}", key::plain(e))),
    };
    if path.symlink_metadata().is_ok() {
        return Err(cannot(&ErrorKind::AlreadyExists.into()));
    }
    // Created with mode 0600 under a name of its own, made durable, then linked to its place,
    // which fails if somebody was faster.
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(|e| cannot(&e))?;
    file.write_all(text).and_then(|()| file.as_file().sync_all()).map_err(|e| cannot(&e))?;
    file.persist_noclobber(path).map_err(|e| cannot(&e.error))?;
    Ok(())
}
