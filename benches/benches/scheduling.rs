//! How long placement takes: filter and score, the best of many, the ledger.
//!
//! `cargo bench --bench scheduling`. The ids: `filter_score/NODES` beside `bare_loop/NODES` (4 groups a
//! node, 3 claims), `claims/N` and `groups/N` (10,000 nodes), `best_of/NODES` (through the
//! index, by the default strategy), `best_of_binpack/NODES` and `best_of_scan/NODES` (one claim of one
//! group), `ledger/...`. Before them a table is printed: the ratio to the bare loop, best
//! of five, and the memory a node.

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use carina_benches::{Bare, LATER, cluster, ledger, node, request};
use carina_core::{Bytes, Strategy};
use carina_sched::simulator::Rng;
use carina_sched::{PodId, Scorer};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// Counts what is allocated, to tell the memory that a node takes.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; only a counter is kept beside it.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The price of the claims that [`request`] makes.
fn price() -> (Bytes, Bytes) {
    (Bytes::gib(100), Bytes::gib(100).saturating_add(Bytes::mib(128)))
}

/// The best of five runs of 20.
fn best_of_five(mut f: impl FnMut()) -> Duration {
    f();
    let run = |f: &mut dyn FnMut()| {
        let start = Instant::now();
        (0..20).for_each(|_| f());
        start.elapsed() / 20
    };
    (0..5).map(|_| run(&mut f)).min().unwrap_or_default()
}

fn table(_: &mut Criterion) {
    println!(
        "{:>8} {:>14} {:>14} {:>7}   4 groups a node, 3 claims, best of five",
        "nodes", "filter+score", "bare loop", "ratio"
    );
    for nodes in [100, 1_000, 10_000, 100_000] {
        let (view, bare) = (cluster(nodes, 4), Bare::new(nodes, 4));
        let asked = request(1, 3, 4);
        let mut scorer = Scorer::new();
        let ours = best_of_five(|| {
            let _ = black_box(scorer.score(&view, black_box(&asked), Strategy::Binpack).map(|s| s.len()));
        });
        let (size, footprint) = price();
        let mut scores = Vec::new();
        let floor =
            best_of_five(|| bare.filter_score(3, black_box(size), black_box(footprint), black_box(&mut scores)));
        println!("{nodes:>8} {ours:>14.1?} {floor:>14.1?} {:>6.2}x", ours.as_secs_f64() / floor.as_secs_f64());
    }
    for groups in [1, 4] {
        let before = LIVE.load(Ordering::Relaxed);
        let view = cluster(10_000, groups);
        let with_view = LIVE.load(Ordering::Relaxed);
        let snapshot = Instant::now();
        let copy = view.clone();
        let snapshot = snapshot.elapsed();
        let with_copy = LIVE.load(Ordering::Relaxed);
        drop((view, copy));
        let middle = LIVE.load(Ordering::Relaxed);
        let kept = ledger(10_000, groups, Strategy::Binpack);
        let with_ledger = LIVE.load(Ordering::Relaxed);
        println!(
            "memory a node with {groups} groups: view {} B, ledger with index {} B; snapshot of 10,000 nodes {snapshot:.1?}, {} KiB",
            (with_view - before) / 10_000,
            (with_ledger - middle) / 10_000,
            (with_copy - with_view) / 1024,
        );
        drop(kept);
    }
}

fn filter_score(c: &mut Criterion) {
    let mut group = c.benchmark_group("filter_score");
    for nodes in [100, 1_000, 10_000, 100_000] {
        let (view, asked, mut scorer) = (cluster(nodes, 4), request(1, 3, 4), Scorer::new());
        group.throughput(Throughput::Elements(nodes as u64));
        group.bench_function(BenchmarkId::from_parameter(nodes), |b| {
            b.iter(|| scorer.score(&view, black_box(&asked), Strategy::Binpack).map(|s| s.len()));
        });
    }
    group.finish();
    let mut group = c.benchmark_group("bare_loop");
    for nodes in [100, 1_000, 10_000, 100_000] {
        let (bare, mut scores, (size, footprint)) = (Bare::new(nodes, 4), Vec::new(), price());
        group.throughput(Throughput::Elements(nodes as u64));
        group.bench_function(BenchmarkId::from_parameter(nodes), |b| {
            b.iter(|| bare.filter_score(3, black_box(size), black_box(footprint), black_box(&mut scores)));
        });
    }
    group.finish();
    let mut group = c.benchmark_group("claims");
    for claims in [1, 2, 4, 8, 16] {
        let (view, asked, mut scorer) = (cluster(10_000, 4), request(1, claims, 4), Scorer::new());
        group.bench_function(BenchmarkId::from_parameter(claims), |b| {
            b.iter(|| scorer.score(&view, black_box(&asked), Strategy::Binpack).map(|s| s.len()));
        });
    }
    group.finish();
    let mut group = c.benchmark_group("groups");
    for groups in [3, 4, 8, 16, 32] {
        let (view, asked, mut scorer) = (cluster(10_000, groups), request(1, 3, groups), Scorer::new());
        group.bench_function(BenchmarkId::from_parameter(groups), |b| {
            b.iter(|| scorer.score(&view, black_box(&asked), Strategy::Binpack).map(|s| s.len()));
        });
    }
    group.finish();
    let mut group = c.benchmark_group("any_group");
    for claims in [1, 3] {
        let (view, mut asked, mut scorer) = (cluster(10_000, 2), request(1, claims, 2), Scorer::new());
        asked.claims.iter_mut().for_each(|claim| claim.group = carina_core::GroupSelector::Any);
        group.bench_function(BenchmarkId::from_parameter(claims), |b| {
            b.iter(|| scorer.score(&view, black_box(&asked), Strategy::Binpack).map(|s| s.len()));
        });
    }
    group.finish();
}

fn best_of(c: &mut Criterion) {
    for strategy in Strategy::ALL {
        // The default strategy has the plain id.
        let id = if strategy == Strategy::default() { "best_of".to_owned() } else { format!("best_of_{strategy}") };
        let mut group = c.benchmark_group(id);
        for nodes in [100, 1_000, 10_000, 100_000] {
            let mut held = ledger(nodes, 4, strategy);
            let mut pod = 0;
            group.bench_function(BenchmarkId::from_parameter(nodes), |b| {
                b.iter(|| {
                    pod += 1;
                    held.place(&request(pod, 1, 4))
                });
            });
        }
        group.finish();
    }
    let mut group = c.benchmark_group("best_of_scan");
    for nodes in [100, 1_000, 10_000, 100_000] {
        let (view, asked, mut scorer) = (cluster(nodes, 4), request(1, 1, 4), Scorer::new());
        group.bench_function(BenchmarkId::from_parameter(nodes), |b| {
            b.iter(|| view.place_by(&mut scorer, black_box(&asked), Strategy::Binpack));
        });
    }
    group.finish();
    let mut group = c.benchmark_group("best_of_claims");
    for claims in [1, 2, 3] {
        let mut held = ledger(100_000, 4, Strategy::Binpack);
        let asked = request(1, claims, 4);
        group.bench_function(BenchmarkId::from_parameter(claims), |b| b.iter(|| held.place(black_box(&asked))));
    }
    group.finish();
}

fn ledgers(c: &mut Criterion) {
    let mut group = c.benchmark_group("ledger");
    for claims in [1, 3] {
        let mut held = ledger(10_000, 4, Strategy::Binpack);
        let mut pod = 0;
        group.bench_function(format!("reserve_release/{claims}"), |b| {
            b.iter(|| {
                pod += 1;
                let asked = request(pod, claims, 4);
                let placed = held.reserve(&asked, LATER);
                held.release(&asked.pod);
                placed
            });
        });
    }
    let mut held = ledger(100_000, 4, Strategy::Binpack);
    let mut pod = 0;
    group.bench_function("reserve_release/1_of_100000", |b| {
        b.iter(|| {
            pod += 1;
            let asked = request(pod, 1, 4);
            let placed = held.reserve(&asked, LATER);
            held.release(&asked.pod);
            placed
        });
    });
    let mut rng = Rng::new(7);
    let mut n = 0;
    group.bench_function("report/100000_nodes", |b| {
        b.iter_batched(
            || {
                n = (n + 1) % 100_000;
                node(&mut rng, n, 4)
            },
            |report| held.report(report),
            criterion::BatchSize::SmallInput,
        );
    });
    let asked = request(u64::MAX, 1, 4);
    let _ = held.reserve(&asked, LATER);
    group.bench_function("reserve_again", |b| b.iter(|| held.reserve(black_box(&asked), LATER)));
    group.bench_function("confirm_unknown", |b| b.iter(|| held.confirm(black_box(&PodId::from("nobody")))));
    group.finish();
}

criterion_group!(benches, table, filter_score, best_of, ledgers);
criterion_main!(benches);
