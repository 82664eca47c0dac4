//! What the guest has acknowledged, and has to find again after a cut.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::error::{Context, Error, Result};

/// What the guest has said: what it must find again after a cut.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// Acknowledged volumes, with their sizes.
    pub volumes: BTreeMap<String, u64>,
    /// The disks by their ids, and whether they are in the group.
    disks: BTreeMap<String, bool>,
    /// What was begun and not acknowledged: `create NAME SIZE`.
    pub in_flight: Option<String>,
}

impl Known {
    /// Takes note of what a line of the guest's says.
    pub fn take(&mut self, line: &str) -> Result<()> {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["begin", operation @ ..] => self.in_flight = Some(operation.join(" ")),
            ["disk", id, place] => drop(self.disks.insert((*id).to_owned(), *place == "in")),
            ["done", verb, name, size] => {
                let size = size.parse().context("a size that the guest said")?;
                self.in_flight = None;
                match *verb {
                    "delete" => drop(self.volumes.remove(*name)),
                    "join" | "drain" => drop(self.disks.insert((*name).to_owned(), *verb == "join")),
                    _ => drop(self.volumes.insert((*name).to_owned(), size)),
                }
            }
            ["lost" | "mended" | "checked" | "found" | "inside" | "missed", ..] => {}
            _ => return Err(Error::new(format!("the guest said `{line}`"))),
        }
        Ok(())
    }

    /// For the guest's next start.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for (name, size) in &self.volumes {
            let _ = writeln!(text, "volume {name} {size}");
        }
        for (id, is_in) in &self.disks {
            let _ = writeln!(text, "disk {id} {}", if *is_in { "in" } else { "out" });
        }
        if let Some(operation) = &self.in_flight {
            let _ = writeln!(text, "begin {operation}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_acknowledged_is_told_from_what_was_in_flight() {
        let mut known = Known::default();
        for line in [
            "disk disk0 in",
            "disk disk1 out",
            "checked 0 volumes",
            "begin create a 67108864",
            "done create a 67108864",
            "begin create b 67108864",
            "done create b 67108864",
            "begin expand a 134217728",
            "done expand a 134217728",
            "begin join disk1 0",
            "done join disk1 0",
            "begin delete b 67108864",
        ] {
            known.take(line).unwrap();
        }
        let before = "volume a 134217728\nvolume b 67108864\ndisk disk0 in\ndisk disk1 in\n";
        assert_eq!(known.to_text(), format!("{before}begin delete b 67108864\n"));
        known.take("done delete b 67108864").unwrap();
        known.take("begin drain disk0 0").unwrap();
        known.take("inside move").unwrap();
        assert_eq!(known.to_text(), "volume a 134217728\ndisk disk0 in\ndisk disk1 in\nbegin drain disk0 0\n");
        known.take("done drain disk0 0").unwrap();
        assert_eq!(known.to_text(), "volume a 134217728\ndisk disk0 out\ndisk disk1 in\n");
        assert!(known.take("segmentation fault").is_err());
    }
}
