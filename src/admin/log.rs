//! Logs go to stderr, where systemd (or a person) collects them.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt};

/// Starts logging. `level` (from `--log`) goes before `RUST_LOG`; without both it is `info`.
///
/// # Errors
/// When the level cannot be understood, or logging was started already.
pub fn start(level: Option<&str>) -> Result<(), String> {
    let from_environment = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let words = level.map(str::to_string).or(from_environment).unwrap_or_else(|| "info".into());
    let filter = EnvFilter::try_new(&words)
        .map_err(|e| format!("cannot understand the log level `{words}`: {e}"))?;
    let terminal = std::io::stderr().is_terminal();
    fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(terminal && std::env::var_os("NO_COLOR").is_none())
        .with_target(false)
        .try_init()
        .map_err(|e| format!("cannot start logging: {e}"))
}
