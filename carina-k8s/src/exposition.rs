//! Figures in Prometheus' text format.

use std::fmt::Write;

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

/// The four documented metrics and what goes on in the background, without samples.
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
        }
    }
}

impl Figures {
    /// As text.
    #[must_use]
    pub fn text(&self) -> String {
        [&self.free, &self.total, &self.volume_total, &self.volume_used, &self.zeroing]
            .into_iter()
            .map(Gauge::text)
            .collect()
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
}
