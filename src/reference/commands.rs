//! The page `commands.md`, generated from the command tree.

use clap::{Arg, Command};

use super::markdown::{begin, code, codes, table, wrap};

const INTRODUCTION: &str = "Every command of `keylatch`, with its arguments and options. `keylatch COMMAND --help` prints the same. \
Commands find their configuration by `--config`, by the variable `KEYLATCH_CONFIG`, as `keylatch.yaml` in the working directory, or as \
`/etc/keylatch/keylatch.yaml`.

Except where a command says otherwise, the exit code is 0 on success, 1 on failure and 2 if the command line is wrong. Results are \
written to standard output, everything else to standard error.";

pub fn page(mut command: Command) -> String {
    command.build();
    let mut text = begin("Commands", INTRODUCTION);
    for each in shown(&command) {
        describe(each, "keylatch", 2, &mut text);
    }
    text
}

fn shown(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|each| !each.is_hide_set() && each.get_name() != "help")
}

fn describe(command: &Command, parent: &str, level: usize, text: &mut String) {
    let name = format!("{parent} {}", command.get_name());
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    text.push_str(&format!("\n{} {name}\n\n{}\n", "#".repeat(level), wrap(&sentence(&about))));
    if shown(command).next().is_none() {
        let usage = command.clone().render_usage().to_string();
        text.push_str(&format!("\n```\n{}\n```\n", usage.trim_start_matches("Usage: ").trim()));
        let arguments = command.get_arguments().filter(|each| !each.is_hide_set() && each.get_id() != "help");
        let rows: Vec<Vec<String>> = arguments.map(|each| vec![signature(each), meaning(each)]).collect();
        let rows = table(&["argument or option", "meaning"], &rows);
        if !rows.is_empty() {
            text.push_str(&format!("\n{rows}"));
        }
    }
    for each in shown(command) {
        describe(each, &name, level + 1, text);
    }
}

/// The names of an argument and its value, such as `-c, --config <FILE>`.
fn signature(argument: &Arg) -> String {
    let takes = argument.get_action().takes_values();
    let value = argument.get_value_names().into_iter().flatten().map(|name| format!("<{name}>")).collect::<Vec<_>>().join(" ");
    let names: Vec<String> = [argument.get_short().map(|short| format!("-{short}")), argument.get_long().map(|long| format!("--{long}"))]
        .into_iter()
        .flatten()
        .collect();
    match (names.is_empty(), takes) {
        (true, _) => code(&value),
        (false, true) => code(&format!("{} {value}", names.join(", "))),
        (false, false) => code(&names.join(", ")),
    }
}

fn meaning(argument: &Arg) -> String {
    let mut text = sentence(&argument.get_help().map(ToString::to_string).unwrap_or_default());
    if argument.get_action().takes_values() && !argument.is_hide_possible_values_set() {
        let values = argument.get_possible_values();
        let names: Vec<&str> = values.iter().filter(|value| !value.is_hide_set()).map(clap::builder::PossibleValue::get_name).collect();
        if !names.is_empty() {
            text.push_str(&format!(" Values: {}.", codes(names)));
        }
        let defaults: Vec<String> = argument.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
        if !defaults.is_empty() && !argument.is_hide_default_value_set() {
            text.push_str(&format!(" Default: {}.", codes(defaults.iter().map(String::as_str))));
        }
    }
    if let Some(variable) = argument.get_env() {
        text.push_str(&format!(" Variable: {}.", code(&variable.to_string_lossy())));
    }
    text
}

/// Adds the full stop that help texts lack.
fn sentence(text: &str) -> String {
    let text = text.replace('<', "\\<");
    if text.is_empty() || text.ends_with(['.', '?', '!']) { text } else { format!("{text}.") }
}
