//! The `keylatch` command.

use std::process::ExitCode;

use clap::Parser;
use keylatch::cli::{Cli, main as run};

/// Streams live long and buffers vary: jemalloc gives memory back where the system's allocator keeps it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    run(Cli::parse())
}
