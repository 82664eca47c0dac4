//! What a command prints: tables for people, JSON for scripts.

use std::io::{self, Write};

use clap::ValueEnum;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::failure::{Class, Failure};

/// The form of what is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Tables and sentences.
    #[default]
    Table,
    /// One JSON document on standard output; an error is a JSON object on standard error.
    Json,
}

/// Prints a value: as JSON, or as what `text` makes of it.
pub fn show<T: Serialize + ?Sized>(format: Format, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
    match format {
        Format::Table => print(&text(value)),
        Format::Json => {
            let json = serde_json::to_string_pretty(value)
                .map_err(|e| Failure::new(Class::Failed, format!("this cannot be written as JSON: {e}")))?;
            print(&json)
        }
    }
}

/// Prints lines on standard output. A reader that has heard enough (`carina ls | head -1`) is no error.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{}", text.trim_end()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Class::Failed, format!("standard output cannot be written: {e}")))
        }
        _ => Ok(()),
    }
}

/// Says something beside the result, on standard error, where it is in nobody's way.
pub fn note(text: &str) {
    // There is nowhere left to complain to if this fails.
    let _ = writeln!(io::stderr().lock(), "carina: {text}");
}

/// Says why the command failed.
pub fn complain(format: Format, failure: &Failure) {
    let json = match format {
        Format::Table => None,
        Format::Json => serde_json::to_string(&serde_json::json!({ "error": failure })).ok(),
    };
    match json {
        Some(json) => drop(writeln!(io::stderr().lock(), "{json}")),
        None => note(&format!("error: {}", failure.message)),
    }
}

/// A table without lines, its columns as wide as they need be.
pub fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for (column, name) in table.column_iter_mut().zip(header) {
        column.set_padding((0, 3));
        if name == "SIZE" || name == "FREE" || name == "LARGEST" {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_plain_columns() {
        let text = table(
            ["NAME", "SIZE", "GROUP"],
            [["a".into(), "10 GiB".into(), "g".into()], ["bcd".into(), "1 GiB".into(), "h".into()]],
        );
        assert_eq!(text, "NAME     SIZE   GROUP\na      10 GiB   g\nbcd     1 GiB   h");
    }
}
