//! Figures in Prometheus' text format.

use std::fmt::Write;

use crate::node_storage::{OrphanFigures, OrphanState};

/// The content type of the format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A metric with its samples.
#[derive(Debug, Clone)]
pub struct Gauge {
    name: &'static str,
    help: &'static str,
    samples: Vec<(Vec<(&'static str, String)>, u64)>,
}

impl Gauge {
    /// A gauge without samples.
    #[must_use]
    pub const fn new(name: &'static str, help: &'static str) -> Self {
        Self { name, help, samples: Vec::new() }
    }

    /// Adds a sample.
    pub fn add(&mut self, labels: Vec<(&'static str, String)>, value: u64) {
        self.samples.push((labels, value));
    }

    /// As text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("# HELP {} {}\n# TYPE {} gauge\n", self.name, self.help, self.name);
        for (labels, value) in &self.samples {
            let labels: Vec<String> =
                labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escape(value))).collect();
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{}{{{}}} {value}", self.name, labels.join(","));
        }
        text
    }
}

/// The four documented metrics, what goes on in the background and what nobody speaks for, without samples.
#[derive(Debug, Clone)]
pub struct Figures {
    /// `carina_devicegroup_vg_free_bytes`.
    pub free: Gauge,
    /// `carina_devicegroup_vg_total_bytes`.
    pub total: Gauge,
    /// `carina_volume_volume_total_bytes`.
    pub volume_total: Gauge,
    /// `carina_volume_volume_used_bytes`.
    pub volume_used: Gauge,
    /// `carina_devicegroup_zeroing_bytes`.
    pub zeroing: Gauge,
    /// `carina_volume_orphans`.
    pub orphans: Gauge,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            free: Gauge::new("carina_devicegroup_vg_free_bytes", "Bytes of a device group that nothing has."),
            total: Gauge::new("carina_devicegroup_vg_total_bytes", "Bytes of a device group."),
            volume_total: Gauge::new("carina_volume_volume_total_bytes", "The size of a volume."),
            volume_used: Gauge::new(
                "carina_volume_volume_used_bytes",
                "Bytes in use of a volume, as the storage counts.",
            ),
            zeroing: Gauge::new(
                "carina_devicegroup_zeroing_bytes",
                "Bytes of deleted volumes that are yet to be zeroed before their space is offered again.",
            ),
            orphans: Gauge::new(
                "carina_volume_orphans",
                "Volumes on the disks that nobody speaks for: in quarantine, or waiting for a person's word.",
            ),
        }
    }
}

impl Figures {
    /// As text.
    #[must_use]
    pub fn text(&self) -> String {
        [&self.free, &self.total, &self.volume_total, &self.volume_used, &self.zeroing, &self.orphans]
            .into_iter()
            .map(Gauge::text)
            .collect()
    }

    /// Adds how many orphans a node has, by what is done about them.
    pub fn add_orphans(&mut self, node: &str, orphans: &[OrphanFigures]) {
        for (state, word) in
            [(OrphanState::Quarantined, "quarantined"), (OrphanState::NeedsConfirmation, "needs-confirmation")]
        {
            let count = orphans.iter().filter(|orphan| orphan.state == state).map(|_| 1_u64).sum();
            self.orphans.add(vec![("node", node.to_owned()), ("state", word.to_owned())], count);
        }
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_written_with_their_labels_escaped() {
        let mut figures = Figures::default();
        figures.free.add(vec![("device_group", "a\"b\\".to_owned()), ("node", "n1".to_owned())], 7);
        assert!(
            figures.text().contains("\ncarina_devicegroup_vg_free_bytes{device_group=\"a\\\"b\\\\\",node=\"n1\"} 7\n"),
            "{}",
            figures.text()
        );
    }

    #[test]
    fn orphans_are_counted_by_what_is_done_about_them() {
        let orphan = |state| OrphanFigures {
            id: "volume-pvc-1".to_owned(),
            group: "carina-vg-ssd".to_owned(),
            size: carina_core::Bytes::GIB.into(),
            state,
            since: None,
            until: None,
            message: String::new(),
        };
        let mut figures = Figures::default();
        figures.add_orphans("n1", &[orphan(OrphanState::Quarantined), orphan(OrphanState::Quarantined)]);
        let text = figures.text();
        assert!(text.contains("carina_volume_orphans{node=\"n1\",state=\"quarantined\"} 2\n"), "{text}");
        assert!(text.contains("carina_volume_orphans{node=\"n1\",state=\"needs-confirmation\"} 0\n"), "{text}");
    }
}
