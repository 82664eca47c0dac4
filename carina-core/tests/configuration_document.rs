//! What `docs/configuration.md` shows is what the library does.

// Clippy lets tests unwrap, but not the functions that tests share.
#![allow(clippy::unwrap_used)]

use carina_core::config::{Config, KEYS};
use carina_core::{Bytes, Disk, DiskSelector, Matched, Medium, Pattern};

const DOCUMENT: &str = include_str!("../../docs/configuration.md");

/// The first cells of a table that begins with this header, as they are written.
fn table(header: &str) -> Vec<Vec<String>> {
    let rows = DOCUMENT.lines().skip_while(|line| *line != header).skip(2).take_while(|line| line.starts_with('|'));
    // A `|` inside a cell is written `\|`.
    let cells = |row: &str| {
        let row = row.replace("\\|", "\0");
        row.trim_matches('|').split('|').map(|cell| cell.trim().replace('\0', "|")).collect()
    };
    rows.map(cells).collect()
}

/// What stands between back quotes.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

fn disk(name: &str) -> Disk {
    Disk::bare(name, Bytes::gib(100), Medium::Ssd)
}

#[test]
fn its_examples_are_read_without_a_warning() {
    let examples: Vec<&str> =
        DOCUMENT.split("```").skip(1).step_by(2).filter_map(|b| b.strip_prefix("json\n")).collect();
    assert_eq!(examples.len(), 2);
    let configs: Vec<Config> = examples
        .into_iter()
        .map(|text| {
            let parsed = Config::parse(text).unwrap();
            assert_eq!(parsed.warnings, Vec::<String>::new(), "{text}");
            parsed.config
        })
        .collect();
    assert!(matches!(&configs[0].disk_selector, DiskSelector::ByMedium(patterns) if patterns.len() == 2));
    assert!(matches!(&configs[1].disk_selector, DiskSelector::Groups(rules) if rules.len() == 3));
}

#[test]
fn its_table_of_keys_is_whole_and_the_defaults_are_true() {
    let rows = table("| key | value | default |");
    let keys: Vec<&str> = rows.iter().map(|row| quoted(&row[0])[0]).collect();
    assert_eq!(keys, KEYS);
    for row in rows.iter().filter(|row| row[2].contains('`')) {
        let (key, default) = (quoted(&row[0])[0], quoted(&row[2])[0]);
        let parsed = Config::parse(&format!("{{\"{key}\": {default}}}")).unwrap();
        assert_eq!(parsed.config, Config::default(), "{key}");
        assert!(parsed.warnings.is_empty(), "{key}");
    }
}

#[test]
fn its_table_of_patterns_is_true() {
    let rows = table("| pattern | takes | leaves |");
    assert!(rows.len() >= 10, "{rows:?}");
    for row in rows {
        let pattern = Pattern::parse(quoted(&row[0])[0]).unwrap();
        for (cell, expected) in [(&row[1], Matched::Yes), (&row[2], Matched::No)] {
            assert!(!quoted(cell).is_empty());
            for name in quoted(cell) {
                assert_eq!(pattern.matches(&disk(name)), expected, "{pattern} and {name}");
            }
        }
    }
}
