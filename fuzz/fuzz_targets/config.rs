//! Configuration loader: any text results in a configuration or a report, and never in a panic.
#![no_main]

use std::path::Path;

use keylatch::compile::{Compiler, check_ports};
use keylatch::config::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let env = |name: &str| name.len().is_multiple_of(2).then(|| "value".to_owned());
    match parse(Path::new("fuzz.yaml"), text, &env) {
        Ok(parsed) => match Compiler::new(check_ports()).compile(parsed) {
            Ok(snapshot) => drop(snapshot),
            Err(report) => assert!(!report.to_string().is_empty()),
        },
        Err(report) => assert!(!report.to_string().is_empty()),
    }
});
