//! The fast code against an oracle that is written plainly from the rules, on random cases.
//!
//! `CARINA_CASES` says how many (100,000 by default), `CARINA_SEED` where to begin.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cases;
mod rules;

use std::time::Duration;

use carina_sched::{Ledger, PlaceError, Scorer, Verdict};
use cases::Case;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn the_fast_code_agrees_with_the_oracle() {
    let first = number("CARINA_SEED", 1);
    let (mut placed, mut ties, mut choices) = (0_u64, 0_u64, 0_u64);
    let cases = number("CARINA_CASES", 100_000);
    for seed in first..first + cases {
        let case = Case::draw(seed);
        let outcome = check(&case, seed);
        placed += u64::from(outcome.0);
        ties += u64::from(outcome.1);
        choices += u64::from(outcome.2);
    }
    println!("{cases} cases from seed {first}: {placed} placed, {ties} with ties, {choices} with a choice of groups");
    // The cases are worth nothing if all or none of them fit.
    assert!(placed > cases / 5 && placed < cases * 19 / 20, "{placed} of {cases} were placed");
    assert!(ties > cases / 100 && choices > cases / 100, "{ties} ties, {choices} choices");
}

/// Whether it was placed, whether there was a tie, whether a claim had a choice of groups.
fn check(case: &Case, seed: u64) -> (bool, bool, bool) {
    let mut ledger = Ledger::new(case.strategy);
    for report in &case.reports {
        ledger.report(report.clone());
    }
    let mut world = rules::World::new(&case.reports);
    for earlier in &case.earlier {
        // What was held before is taken off the oracle's world claim by claim.
        if let Ok(placed) = ledger.reserve(earlier, Duration::from_secs(1)) {
            world.hold(earlier, &placed);
        }
    }
    let expected = world.judge(&case.request, case.strategy);
    let mut scorer = Scorer::new();
    let scores = scorer.score(ledger.view(), &case.request, case.strategy).expect("the request is valid");
    for judged in &expected {
        let score = scores.get(&judged.node);
        assert_eq!(
            score.is_some(),
            judged.fit.is_some(),
            "seed {seed}: node {} fits or not: oracle {:?}\n{case:#?}",
            judged.node,
            judged.fit
        );
        if let (Some(score), Some(fit)) = (score, &judged.fit)
            && !fit.loose
        {
            assert_eq!(score.points(), fit.points(case.request.claims.len()), "seed {seed}: {fit:?}\n{case:#?}");
        }
    }
    let best = rules::best(&expected, &case.request);
    let by_scan = ledger.view().place(&case.request, case.strategy);
    let by_index = ledger.place(&case.request);
    assert_eq!(by_scan, by_index, "seed {seed}: scan and index\n{case:#?}");
    let table = ledger.view().explain(&case.request, case.strategy).expect("the request is valid");
    assert_eq!(table.len(), case.reports.len());
    match (&by_index, best) {
        (Ok(placed), Some(best)) => {
            if expected.iter().all(|judged| judged.fit.as_ref().is_none_or(|fit| !fit.loose)) {
                assert_eq!(placed.node, best.node, "seed {seed}: {expected:#?}\n{case:#?}");
                let groups: Vec<_> = placed.claims.iter().map(|claim| claim.group.clone()).collect();
                let wanted = best.fit.as_ref().map(|fit| fit.groups.clone());
                assert_eq!(Some(groups), wanted, "seed {seed}: groups on {}\n{case:#?}", best.node);
            }
            assert!(matches!(table[0].verdict, Verdict::Fits { rank: 1, .. }), "seed {seed}");
            assert_eq!(table[0].node, placed.node, "seed {seed}");
            world.check_promise(&case.request, placed, seed);
        }
        (Err(PlaceError::NoRoom { reasons, .. }), None) => {
            assert!(case.request.node.is_some() || reasons.len() == case.reports.len(), "seed {seed}");
            for (_, reason) in reasons {
                assert!(!reason.to_string().is_empty() && !reason.summary().is_empty());
            }
        }
        (outcome, best) => panic!("seed {seed}: {outcome:?} where the oracle has {best:?}\n{case:#?}"),
    }
    let fits: Vec<_> = expected.iter().filter_map(|judged| judged.fit.as_ref()).collect();
    let top = fits.iter().map(|fit| fit.votes).max();
    (
        by_index.is_ok(),
        fits.iter().filter(|fit| Some(fit.votes) == top).count() > 1,
        fits.iter().any(|fit| fit.ways > 1),
    )
}
