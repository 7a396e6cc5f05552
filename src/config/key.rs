//! Keys as they lie in files and configurations: 32 bytes of X25519, written in base64.

use std::{fs::File, io::Read, os::unix::fs::PermissionsExt, path::Path};

use aws_lc_rs::agreement;
use base64::{Engine, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

/// A private key takes 44 characters and a line end; anything much longer is another file.
const KEY_FILE_BYTES_MAX: u64 = 256;

/// A private X25519 key; wiped when dropped.
pub type PrivateKey = Zeroizing<[u8; 32]>;

/// Draws a fresh private key.
///
/// # Errors
/// When the operating system has no random bytes.
pub fn generate() -> Result<PrivateKey, String> {
    let mut key = Zeroizing::new([0; 32]);
    getrandom::fill(key.as_mut()).map_err(|e| format!("no random bytes: {e}"))?;
    Ok(key)
}

/// The public key that belongs to a private one.
///
/// # Errors
/// When the bytes are no private key.
pub fn public_of(private: &PrivateKey) -> Result<[u8; 32], String> {
    let bad = |_| "not an X25519 private key".to_string();
    let key = agreement::PrivateKey::from_private_key(&agreement::X25519, private.as_ref())
        .map_err(|_| "not an X25519 private key".to_string())?;
    let public = key.compute_public_key().map_err(bad)?;
    public.as_ref().try_into().map_err(|_| "not an X25519 private key".to_string())
}

/// Base64, 44 characters.
#[must_use]
pub fn encode(key: &[u8; 32]) -> String {
    STANDARD.encode(key)
}

/// Reads base64 of 32 bytes; says what is wrong with anything else.
///
/// # Errors
/// Says what is wrong, without repeating the text: it may be a private key.
pub fn decode(text: &str) -> Result<[u8; 32], String> {
    let bytes = Zeroizing::new(
        STANDARD.decode(text.trim()).map_err(|_| "not base64 (44 characters, ending in `=`)")?,
    );
    <[u8; 32]>::try_from(bytes.as_slice())
        .map_err(|_| format!("{} bytes where a key has 32", bytes.len()))
}

/// Why a key file cannot be used, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFileError {
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// Reads a private key from its file. Nobody but its owner may be able to
/// read it.
///
/// # Errors
/// When it is missing, open to others, or no key.
pub fn read_private(path: &Path) -> Result<PrivateKey, KeyFileError> {
    let shown = path.display();
    let error = |message: String, hint: String| KeyFileError { message, hint };
    let file = File::open(path).map_err(|e| {
        let hint = if e.kind() == std::io::ErrorKind::NotFound {
            format!("sidepath keygen --out {shown}")
        } else {
            format!("check who may read it: ls -l {shown}")
        };
        error(format!("cannot open key file {shown}: {}", plain(&e)), hint)
    })?;
    // Asked of the open file, so that it cannot be exchanged between check and read.
    let meta = file.metadata().map_err(|e| {
        error(format!("cannot look at key file {shown}: {}", plain(&e)), "check the path".into())
    })?;
    if !meta.is_file() {
        return Err(error(
            format!("key file {shown} is not a regular file"),
            format!("sidepath keygen --out {shown}"),
        ));
    }
    let mode = meta.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(error(
            format!("key file {shown} has mode {mode:04o}: others may use our identity"),
            format!("chmod 600 {shown}"),
        ));
    }
    let no_key = |what: &str| {
        error(
            format!("key file {shown} holds no private key: {what}"),
            "sidepath keygen writes one; keep the old file if it is worth something".into(),
        )
    };
    let mut text = Zeroizing::new(String::new());
    file.take(KEY_FILE_BYTES_MAX).read_to_string(&mut text).map_err(|e| no_key(&plain(&e)))?;
    let key = Zeroizing::new(decode(&text).map_err(|e| no_key(&e))?);
    public_of(&key).map_err(|e| no_key(&e))?;
    Ok(key)
}

/// The operating system's words without `(os error 2)`.
#[must_use]
pub fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(at) => text[..at].to_lowercase(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_public_key_is_the_one_of_rfc_7748() {
        // Alice's pair of RFC 7748, section 6.1.
        let private = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
        let public = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
        let private = Zeroizing::new(decode(private).unwrap());
        assert_eq!(encode(&public_of(&private).unwrap()), public);
    }

    #[test]
    fn a_bad_key_is_described_but_not_repeated() {
        assert!(decode("!!!").unwrap_err().contains("not base64"));
        assert_eq!(decode("AAAA").unwrap_err(), "3 bytes where a key has 32");
    }
}
