//! The `keylatch` command.

use std::process::ExitCode;

use clap::Parser;
use keylatch::cli::{Cli, main as run};

/// Long streams and varying buffer sizes fragment the heap; jemalloc returns freed memory to the system.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    run(Cli::parse())
}
