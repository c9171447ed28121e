//! The evaluation of the placement engine, on all processors: `make eval-placement`, or
//! `cargo run --release -p slicegate-core --example evaluate_placement -- SEEDS ARRIVALS`.

#![expect(clippy::disallowed_types, reason = "it says how long it took")]

use std::num::NonZero;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use slicegate_core::simulate::demand::Distribution;
use slicegate_core::simulate::protocol::{Bench, LOADS, Losses, loss_tables, queue_tables};
use support::a100;

#[path = "../benches/support/mod.rs"]
mod support;

fn main() {
    let mut numbers = std::env::args().skip(1).map(|argument| argument.parse::<u32>());
    let (Ok(seeds), Ok(arrivals)) = (numbers.next().unwrap_or(Ok(30)), numbers.next().unwrap_or(Ok(20_000)))
    else {
        eprintln!("error: expected SEEDS ARRIVALS, as in 30 20000");
        std::process::exit(2);
    };
    let begun = Instant::now();
    let model = std::sync::Arc::new(a100());
    println!("100 A100-80GB, {seeds} seeds × {arrivals} requests, the first {} not counted\n", arrivals / 5);
    let bench = Bench::new(&model, 100);
    for load in LOADS {
        let losses: Losses = Distribution::EVALUATED
            .iter()
            .map(|distribution| in_parallel(seeds, |seed| bench.losses(*distribution, load, arrivals, seed)))
            .collect();
        print!("{}", loss_tables(load, &losses));
    }
    let bench = Bench::new(&model, 8);
    println!("{}", queue_tables(&in_parallel(seeds, |seed| bench.waits(seed))));
    println!("{:.0} s", begun.elapsed().as_secs_f64());
}

/// What comes of the seeds from 1, in their order.
fn in_parallel<T: Send>(seeds: u32, one: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let all = seeds as usize;
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let job = next.fetch_add(1, Ordering::Relaxed);
            if job >= all {
                return;
            }
            let result = one(1 + job as u64);
            done.lock().expect("no thread panics while it holds it").push((job, result));
        }
    };
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| (0..processors).for_each(|_| drop(scope.spawn(work))));
    let mut done = done.into_inner().expect("no thread has panicked");
    done.sort_by_key(|(job, _)| *job);
    done.into_iter().map(|(_, result)| result).collect()
}
