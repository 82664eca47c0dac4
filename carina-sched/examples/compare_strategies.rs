//! Compares the strategies on the traces that come with Carina: a table, and a picture a trace.
//!
//! `cargo run --release -p carina-sched --example compare_strategies -- [FOLDER [NODES [SEED]]]`

use carina_sched::Strategy;
use carina_sched::simulator::{TRACES, Trace, simulate};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next();
    let nodes = arguments.next().map_or(Ok(50), |text| text.parse())?;
    let seed = arguments.next().map_or(Ok(1), |text| text.parse())?;
    for (name, about) in TRACES {
        let report = simulate(&Trace::named(name, nodes, seed)?, &Strategy::ALL);
        println!("{about}\n{}\n", report.to_table());
        if let Some(folder) = &folder {
            std::fs::write(format!("{folder}/{name}.svg"), report.to_svg())?;
        }
    }
    Ok(())
}
