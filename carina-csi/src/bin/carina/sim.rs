//! `carina sim`: how the placement strategies do on a workload, before production.

use std::fs;
use std::path::PathBuf;

use carina_sched::Strategy;
use carina_sched::simulator::{TRACES, Trace, simulate};
use clap::Args;

use crate::failure::{Class, Failure};
use crate::options::Options;
use crate::output;

/// Try the placement strategies on a simulated cluster, and compare them.
///
/// Plays a workload of pods that come and go to the allocator that a cluster runs, once for each strategy.
/// The table says how many pods were placed, how much was in use when the first was turned away (against
/// perfect packing), and how large a volume still fitted, on the mean, in the nodes' first group.
/// `--output json` has every placement and every rejection, `--svg` draws the comparison.
#[derive(Debug, Args)]
#[command(after_help = TRACES_HELP)]
pub struct Sim {
    /// The workload: one of the traces below, or a JSON file
    #[arg(long, default_value = "databases", value_name = "NAME|FILE")]
    trace: String,
    /// How many nodes the cluster has [default: 50, or what the file says]
    #[arg(long, value_name = "COUNT")]
    nodes: Option<usize>,
    /// Which of the workloads that a trace can draw; the same number always draws the same
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The strategy to try: all, binpack or spreadout
    #[arg(long, default_value = "all", value_parser = strategies)]
    strategy: Strategies,
    /// Draw the comparison into this file (SVG)
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write the workload into this file (JSON), to be changed and given to --trace
    #[arg(long, value_name = "FILE")]
    save_trace: Option<PathBuf>,
}

const TRACES_HELP: &str = "\
Traces:
  databases  a fleet of databases that come and go, and in time ask for a tenth more than there is
  fill       databases that come and stay, until the cluster is full twice over
  churn      many small databases that live for hours, and now and then one that wants most of a disk

Examples:
  carina sim --svg compare.svg
  carina sim --trace fill --nodes 200 --strategy binpack
  carina sim --trace churn --save-trace mine.json && carina sim --trace mine.json";

/// The strategies to try.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Strategies(Vec<Strategy>);

fn strategies(text: &str) -> Result<Strategies, String> {
    if text == "all" {
        return Ok(Strategies(Strategy::ALL.to_vec()));
    }
    let one = text.parse().map_err(|error: carina_core::Error| format!("{error}; or \"all\""))?;
    Ok(Strategies(vec![one]))
}

impl Sim {
    /// Runs the simulation and prints what came of it.
    pub fn run(&self, options: &Options) -> Result<(), Failure> {
        let trace = self.load()?;
        if let Some(file) = &self.save_trace {
            let json = serde_json::to_string(&trace)
                .map_err(|error| Failure::new(Class::Failed, format!("the trace cannot be written: {error}")))?;
            write(file, &json)?;
        }
        let report = simulate(&trace, &self.strategy.0);
        if let Some(file) = &self.svg {
            write(file, &report.to_svg())?;
        }
        output::show(options.output, &report, carina_sched::simulator::Report::to_table)
    }

    fn load(&self) -> Result<Trace, Failure> {
        let usage = |message: String| Failure::new(Class::Usage, message);
        if TRACES.iter().any(|(name, _)| *name == self.trace) {
            let nodes = self.nodes.unwrap_or(50);
            return Trace::named(&self.trace, nodes, self.seed).map_err(|error| usage(error.to_string()));
        }
        let text = fs::read_to_string(&self.trace).map_err(|error| {
            let names = TRACES.map(|(name, _)| name).join(", ");
            usage(format!("trace \"{}\" is none of {names}, and cannot be read as a file: {error}", self.trace))
        })?;
        let mut trace = Trace::from_json(&text).map_err(|error| usage(format!("{}: {error}", self.trace)))?;
        if let Some(nodes) = self.nodes {
            trace = trace.with_nodes(nodes).map_err(|error| usage(error.to_string()))?;
        }
        Ok(trace)
    }
}

fn write(file: &PathBuf, text: &str) -> Result<(), Failure> {
    fs::write(file, text)
        .map_err(|error| Failure::new(Class::Failed, format!("{} cannot be written: {error}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_lists_every_trace() {
        for (name, about) in TRACES {
            assert!(TRACES_HELP.contains(&format!("  {name:<10} {about}")), "{name}");
        }
    }

    #[test]
    fn strategies_are_one_or_all() {
        assert_eq!(strategies("all"), Ok(Strategies(Strategy::ALL.to_vec())));
        assert_eq!(strategies("spradout"), Ok(Strategies(vec![Strategy::Spreadout])));
        assert!(strategies("tetris").is_err_and(|error| error.contains("binpack") && error.contains("all")));
    }
}
