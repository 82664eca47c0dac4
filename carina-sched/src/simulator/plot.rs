//! A report as a picture: an SVG of our own, so that it needs nothing to be drawn.

use std::fmt::Write as _;

use carina_core::{Bytes, Strategy};

use super::run::{Outcome, Report, Sample};
use super::table::{percent, short};

/// The size of the picture.
const WIDTH: f64 = 1080.0;
const HEIGHT: f64 = 860.0;
/// The text sizes.
const TITLE: u32 = 22;
const HEAD: u32 = 15;
const SMALL: u32 = 12;

/// Colours that people tell apart whatever their eyes (Okabe and Ito, 2008), and on light and dark paper.
fn colour(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::Binpack => "#0072b2",
        Strategy::Spreadout => "#d55e00",
    }
}

/// The dash of a strategy's line, for those who print in black.
fn dash(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::Binpack => "",
        Strategy::Spreadout => " stroke-dasharray=\"7 4\"",
    }
}

/// A place for a chart.
#[derive(Debug, Clone, Copy)]
struct Frame {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
}

/// A chart over time.
struct Lines<'a> {
    title: &'a str,
    note: &'a str,
    top: f64,
    label: &'a dyn Fn(f64) -> String,
    figure: &'a dyn Fn(&Sample) -> f64,
}

impl Report {
    /// The report as an SVG picture: what is in use over time, the largest volume that still fits,
    /// the pods turned away, and how much each strategy served before it first turned one away.
    ///
    /// Everything that could come from outside is escaped.
    #[must_use]
    pub fn to_svg(&self) -> String {
        let mut svg = String::new();
        let _ = write!(
            svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
             height=\"{HEIGHT}\" font-family=\"Inter, 'Segoe UI', 'Helvetica Neue', 'DejaVu Sans', Arial, sans-serif\" role=\"img\">\n\
             <style>\n.paper{{fill:#ffffff}} .panel{{fill:#f6f7f9}} .ink{{fill:#1b1f24}} .soft{{fill:#57606a}} \
             .grid{{stroke:#d8dee4}} .axis{{stroke:#8c959f}}\n\
             @media (prefers-color-scheme: dark) {{ .paper{{fill:#0d1117}} .panel{{fill:#161b22}} .ink{{fill:#e6edf3}} \
             .soft{{fill:#9198a1}} .grid{{stroke:#30363d}} .axis{{stroke:#6e7681}} }}\n</style>\n\
             <rect class=\"paper\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>\n"
        );
        self.heading(&mut svg);
        let frame = |column: u32, row: u32| Frame {
            left: 84.0 + f64::from(column) * 520.0,
            top: 190.0 + f64::from(row) * 340.0,
            width: 440.0,
            height: 230.0,
        };
        let bound = gib(self.bound);
        let share = |value: f64| format!("{:.0}%", value * 100.0);
        let top = self.samples().map(|s| gib(s.used) / bound.max(1.0)).fold(0.0, f64::max);
        self.lines(
            &mut svg,
            frame(0, 0),
            &Lines {
                title: "In use",
                note: "the sum of volume sizes, of what the empty cluster may promise",
                top: (top * 1.08).clamp(0.1, 1.0),
                label: &share,
                figure: &|sample| gib(sample.used) / bound.max(1.0),
            },
        );
        let top = self.samples().map(|s| gib(s.largest)).fold(0.0, f64::max);
        self.lines(
            &mut svg,
            frame(1, 0),
            &Lines {
                title: &format!("Largest volume that still fits in {}", self.first),
                note: "on any node, at that time, in TiB: what fragmentation leaves",
                top: top / 1024.0,
                label: &|value| trimmed(value),
                figure: &|sample| gib(sample.largest) / 1024.0,
            },
        );
        let top = self.outcomes.iter().map(|outcome| count(outcome.rejections.len())).fold(0.0, f64::max);
        self.lines(
            &mut svg,
            frame(0, 1),
            &Lines {
                title: "Pods turned away",
                note: "in all, until that time",
                top: top.max(1.0),
                label: &|value| format!("{value:.0}"),
                figure: &|sample| count(sample.rejected),
            },
        );
        self.bars(&mut svg, frame(1, 1));
        svg.push_str("</svg>\n");
        svg
    }

    fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.outcomes.iter().flat_map(|outcome| &outcome.samples)
    }

    fn heading(&self, svg: &mut String) {
        let pods = self.outcomes.first().map_or(0, |outcome| outcome.asked);
        let asked = self.outcomes.first().map(|outcome| outcome.asked_size).unwrap_or_default();
        text(svg, 40.0, 46.0, TITLE, "ink", "start", true, &format!("Trace “{}” on {} nodes", self.trace, self.nodes));
        let facts = format!(
            "{pods} pods ask for {} over the run; the empty cluster may promise {}",
            short(asked),
            short(self.bound)
        );
        text(svg, 40.0, 72.0, HEAD, "soft", "start", false, &facts);
        let mut left = 40.0;
        for outcome in &self.outcomes {
            let name = outcome.strategy.as_str();
            let _ = writeln!(
                svg,
                "<line x1=\"{left}\" y1=\"102\" x2=\"{}\" y2=\"102\" stroke=\"{}\" stroke-width=\"3\"{}/>",
                left + 34.0,
                colour(outcome.strategy),
                dash(outcome.strategy)
            );
            text(svg, left + 42.0, 107.0, HEAD, "ink", "start", false, name);
            left += 62.0 + 8.6 * count(name.len());
        }
    }

    /// A line a strategy over time.
    fn lines(&self, svg: &mut String, frame: Frame, lines: &Lines<'_>) {
        panel(svg, frame, lines.title, lines.note);
        let (step, top) = scale(lines.top);
        let y = |value: f64| frame.top + frame.height * (1.0 - (value / top).clamp(0.0, 1.0));
        let mut value = 0.0;
        while value <= top * 1.0001 {
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
                frame.left,
                y(value),
                frame.left + frame.width,
                y(value)
            );
            text(svg, frame.left - 8.0, y(value) + 4.0, SMALL, "soft", "end", false, &(lines.label)(value));
            value += step;
        }
        let end = self.samples().map(|sample| sample.at).max().unwrap_or(0);
        let (unit, name) = time_unit(end);
        let (tick, _) = scale(seconds(end) / unit);
        let x = |at: f64| frame.left + frame.width * at / seconds(end).max(1.0);
        let mut at = 0.0;
        while at * unit <= seconds(end) * 1.0001 {
            let middle = x(at * unit);
            let bottom = frame.top + frame.height;
            let _ = writeln!(
                svg,
                "<line class=\"axis\" x1=\"{middle:.1}\" y1=\"{bottom:.1}\" x2=\"{middle:.1}\" y2=\"{:.1}\"/>",
                bottom + 5.0
            );
            text(svg, middle, bottom + 20.0, SMALL, "soft", "middle", false, &format!("{at:.0}"));
            at += tick;
        }
        let bottom = frame.top + frame.height + 38.0;
        text(svg, frame.left + frame.width, bottom, SMALL, "soft", "end", false, name);
        for outcome in &self.outcomes {
            let mut points = String::new();
            for sample in &outcome.samples {
                let _ = write!(points, "{:.1},{:.1} ", x(seconds(sample.at)), y((lines.figure)(sample)));
            }
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2.2\" stroke-linejoin=\"round\"{}/>",
                points.trim_end(),
                colour(outcome.strategy),
                dash(outcome.strategy)
            );
        }
    }

    /// A bar a strategy: what was in use when the first pod was turned away, against the bound.
    fn bars(&self, svg: &mut String, frame: Frame) {
        panel(svg, frame, "In use when the first pod was turned away", "the bar's whole length is perfect packing");
        let room = frame.height / count(self.outcomes.len()).max(1.0);
        let height = (room * 0.42).min(40.0);
        for (n, outcome) in self.outcomes.iter().enumerate() {
            let top = frame.top + room * (count(n) + 0.5) - height / 2.0 + 8.0;
            let part = gib(outcome.before_first_rejection) / gib(self.bound).max(1.0);
            let _ = writeln!(
                svg,
                "<rect class=\"panel\" x=\"{0}\" y=\"{top:.1}\" width=\"{1}\" height=\"{height:.1}\" rx=\"4\"/>\n\
                 <rect x=\"{0}\" y=\"{top:.1}\" width=\"{2:.1}\" height=\"{height:.1}\" rx=\"4\" fill=\"{3}\"/>",
                frame.left,
                frame.width,
                frame.width * part.clamp(0.0, 1.0),
                colour(outcome.strategy)
            );
            let label = self.bar_label(outcome);
            text(svg, frame.left, top - 7.0, HEAD, "ink", "start", false, outcome.strategy.as_str());
            text(svg, frame.left + frame.width, top - 7.0, HEAD, "soft", "end", false, &label);
        }
    }

    fn bar_label(&self, outcome: &Outcome) -> String {
        let share = percent(outcome.before_first_rejection, self.bound);
        let what = if outcome.rejections.is_empty() { ", none turned away" } else { "" };
        format!("{} ({share}){what}", short(outcome.before_first_rejection))
    }
}

fn panel(svg: &mut String, frame: Frame, title: &str, note: &str) {
    text(svg, frame.left - 44.0, frame.top - 36.0, HEAD, "ink", "start", true, title);
    text(svg, frame.left - 44.0, frame.top - 17.0, SMALL, "soft", "start", false, note);
}

#[allow(clippy::too_many_arguments)]
fn text(svg: &mut String, x: f64, y: f64, size: u32, class: &str, anchor: &str, bold: bool, content: &str) {
    let weight = if bold { " font-weight=\"600\"" } else { "" };
    let escaped = content.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let escaped: String = escaped.chars().filter(|c| !c.is_control()).collect();
    let _ = writeln!(
        svg,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" text-anchor=\"{anchor}\"{weight}>{escaped}</text>"
    );
}

/// Round steps for an axis up to `top`, four to eight of them, and where the axis ends.
fn scale(top: f64) -> (f64, f64) {
    let top = if top.is_finite() && top > 0.0 { top } else { 1.0 };
    let rough = top / 5.0;
    let magnitude = 10.0_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|m| m * magnitude).find(|step| *step >= rough);
    let step = step.unwrap_or(rough);
    (step, (top / step).ceil() * step)
}

/// The unit of time to write below a run of this length.
fn time_unit(end: u64) -> (f64, &'static str) {
    match end {
        0..=7_200 => (60.0, "minutes"),
        7_201..=172_800 => (3600.0, "hours"),
        _ => (86_400.0, "days"),
    }
}

#[allow(clippy::cast_precision_loss)]
fn gib(size: Bytes) -> f64 {
    size.get() as f64 / Bytes::GIB.get() as f64
}

/// Without decimals that say nothing.
fn trimmed(value: f64) -> String {
    format!("{value:.2}").trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[allow(clippy::cast_precision_loss)]
fn count(n: usize) -> f64 {
    n as f64
}

#[allow(clippy::cast_precision_loss)]
fn seconds(at: u64) -> f64 {
    at as f64
}
