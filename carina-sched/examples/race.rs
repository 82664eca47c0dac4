//! A thousand pods race for a thousand places on a hundred nodes whose figures come 30 seconds late: what
//! the ledger is for.
//!
//! `cargo run --release -p carina-sched --example race -- [SEED]`

use std::time::Instant;

use carina_sched::simulator::Race;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let seed = std::env::args().nth(1).map_or(Ok(1), |text| text.parse())?;
    let race = Race { seed, ..Race::default() };
    println!(
        "{:<44} {:>7} {:>8} {:>8} {:>7} {:>7} {:>9} {:>8}",
        "race", "placed", "pending", "refused", "cycles", "waited", "all after", "took"
    );
    for (what, race) in [
        ("1,000 pods, 1,000 places", race.clone()),
        ("1,000 pods, 999 places", Race { places: 999, ..race.clone() }),
        ("500 pods of 2 claims, 1,000 places", Race { pods: 500, claims: 2, ..race.clone() }),
        ("200 pods of 5 claims, 1,000 places", Race { pods: 200, claims: 5, ..race.clone() }),
        ("1,000 pods, 1,000 places, without the ledger", Race { with_ledger: false, ..race.clone() }),
    ] {
        let began = Instant::now();
        let finish = race.run();
        println!(
            "{what:<44} {:>7} {:>8} {:>8} {:>7} {:>7} {:>8}s {:>6}ms",
            finish.placed,
            finish.pending.len(),
            finish.refused,
            finish.cycles,
            finish.waited,
            finish.after.as_secs(),
            began.elapsed().as_millis(),
        );
        for (pod, reasons) in finish.pending.iter().take(3) {
            let reasons: Vec<String> = reasons.iter().map(|(reason, nodes)| format!("{nodes} x {reason}")).collect();
            println!("  {pod}: {}", reasons.join(", "));
        }
    }
    Ok(())
}
