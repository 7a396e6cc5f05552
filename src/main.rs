//! The exit code of a command, and nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    sidepath::cli::main()
}
