//! A report as a table for people.

use carina_core::Bytes;

use super::run::{Outcome, Report};

/// The heads of the table's columns.
const HEADS: [&str; 8] = [
    "STRATEGY",
    "PLACED",
    "REJECTED",
    "SERVED",
    "IN USE AT FIRST REJECTION",
    "PEAK USE",
    "MEAN USE",
    "LARGEST FIT (MEAN)",
];

impl Outcome {
    /// The mean over the run of what was in use.
    #[must_use]
    pub fn mean_used(&self) -> Bytes {
        mean(self.samples.iter().map(|sample| sample.used))
    }

    /// The mean over the run of the largest volume that still fitted somewhere.
    #[must_use]
    pub fn mean_largest(&self) -> Bytes {
        mean(self.samples.iter().map(|sample| sample.largest))
    }
}

fn mean(figures: impl ExactSizeIterator<Item = Bytes>) -> Bytes {
    let n = figures.len() as u128;
    let sum: u128 = figures.map(|bytes| u128::from(bytes.get())).sum();
    sum.checked_div(n).and_then(|mean| u64::try_from(mean).ok()).map_or(Bytes::ZERO, Bytes)
}

/// A part of a whole, in percent with one decimal.
#[allow(clippy::cast_precision_loss)]
pub(super) fn percent(part: Bytes, whole: Bytes) -> String {
    format!("{:.1}%", part.get() as f64 * 100.0 / whole.get().max(1) as f64)
}

/// A size in the largest unit of which there are some, with one decimal.
#[allow(clippy::cast_precision_loss)]
pub(super) fn short(size: Bytes) -> String {
    let size = size.get() as f64;
    let (unit, name) = if size >= Bytes::TIB.get() as f64 { (Bytes::TIB, "TiB") } else { (Bytes::GIB, "GiB") };
    format!("{:.1} {name}", size / unit.get() as f64)
}

impl Report {
    /// The heads of the columns, and a row a strategy.
    #[must_use]
    pub fn rows(&self) -> (Vec<&'static str>, Vec<Vec<String>>) {
        let row = |outcome: &Outcome| {
            vec![
                outcome.strategy.to_string(),
                outcome.placements.len().to_string(),
                outcome.rejections.len().to_string(),
                format!("{} ({})", short(outcome.served_size), percent(outcome.served_size, outcome.asked_size)),
                format!(
                    "{} ({})",
                    short(outcome.before_first_rejection),
                    percent(outcome.before_first_rejection, self.bound)
                ),
                percent(outcome.peak, self.bound),
                percent(outcome.mean_used(), self.bound),
                short(outcome.mean_largest()),
            ]
        };
        (HEADS.to_vec(), self.outcomes.iter().map(row).collect())
    }

    /// The rows as text, with what they were measured on above.
    #[must_use]
    pub fn to_table(&self) -> String {
        let (heads, rows) = self.rows();
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column)).map(String::len);
            cells.chain(heads.get(column).map(|head| head.len())).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..heads.len()).map(width).collect();
        let line = |cells: Vec<&str>| {
            let padded: Vec<String> =
                cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            padded.join("  ").trim_end().to_owned()
        };
        let asked = self.outcomes.first();
        let mut lines = vec![format!(
            "trace {}: {} pods ask for {} of {} nodes, which may promise {} in all (the bound)",
            self.trace,
            asked.map_or(0, |outcome| outcome.asked),
            short(asked.map(|outcome| outcome.asked_size).unwrap_or_default()),
            self.nodes,
            short(self.bound),
        )];
        lines.push(String::new());
        lines.push(line(heads.clone()));
        lines.extend(rows.iter().map(|row| line(row.iter().map(String::as_str).collect())));
        lines.join("\n")
    }
}
