//! `kubectl slices`: what users and administrators look at.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use clap::Parser;
use slicegate::cli::{self, Cli};

#[tokio::main]
async fn main() -> ExitCode {
    match cli::run(Cli::parse()).await {
        Ok(text) => match std::io::stdout().write_all(text.as_bytes()) {
            // The reader of a pipe has had enough.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => fail(&error),
            _ => ExitCode::SUCCESS,
        },
        Err(error) => fail(&error),
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::FAILURE
}
