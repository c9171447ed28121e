//! What one placement takes, by the number of GPUs: `cargo bench -p slicegate-core --bench engine`.
//!
//! A pool of A100-80GB GPUs is kept as full as it is at load 0.9: slices of all profiles come and go, and each that goes makes
//! room for the next. PER SECOND counts pairs of an arrival and a departure on one core; the other columns are nanoseconds of a
//! single arrival (search and update) and of a single departure (update), clock included.

#![expect(clippy::disallowed_types, reason = "it measures time")]

use std::sync::Arc;
use std::time::Instant;

use slicegate_core::engine::pool::{Gpu, Pool};
use slicegate_core::engine::score::{Demand, Scores};
use slicegate_core::engine::table::{Place, Table};
use slicegate_core::geometry::Mask;
use support::a100;

mod support;

const GPUS: [usize; 5] = [100, 1_000, 10_000, 100_000, 1_000_000];
const PAIRS: u32 = 2_000_000;
const TIMED: usize = 200_000;

fn main() {
    println!(
        "{:>9}{:>14}{:>14}{:>14}{:>14}{:>14}",
        "GPUS", "PER SECOND", "PLACE P50", "PLACE P99", "FREE P50", "FREE P99"
    );
    let mut rates = Vec::new();
    for gpus in GPUS {
        let mut fleet = Fleet::filled(gpus);
        let begun = Instant::now();
        (0..PAIRS).for_each(|_| fleet.turn(|_, _| {}));
        let rate = f64::from(PAIRS) / begun.elapsed().as_secs_f64();
        let (mut placed, mut freed) = (Vec::with_capacity(TIMED), Vec::with_capacity(TIMED));
        for _ in 0..TIMED {
            fleet.turn(|is_arrival, begun| {
                let times = if is_arrival { &mut placed } else { &mut freed };
                times.push(begun.elapsed().as_nanos());
            });
        }
        let [p50, p99] = percentiles(&mut placed);
        let [free_p50, free_p99] = percentiles(&mut freed);
        println!("{gpus:>9}{rate:>14.0}{p50:>14}{p99:>14}{free_p50:>14}{free_p99:>14}");
        rates.push(rate);
    }
    let most = rates.iter().copied().fold(0.0, f64::max);
    let least = rates.iter().take(4).copied().fold(f64::MAX, f64::min);
    println!("10² to 10⁵ GPUs: at least {least:.0} pairs per second, within a factor of {:.2}", most / least);
}

fn percentiles(times: &mut [u128]) -> [u128; 2] {
    times.sort_unstable();
    [50, 99].map(|percent| times.get(times.len() * percent / 100).copied().unwrap_or(0))
}

/// GPUs, and what is on them, in as few bytes as it takes: what is measured is the pool, not the memory around it.
struct Fleet {
    pool: Pool,
    /// By GPU: a byte for each slice, and how many there are.
    contents: Vec<[u8; 8]>,
    /// All slices, in no order.
    slices: Vec<(u32, u8)>,
    random: u64,
}

fn pack(Place { profile, start }: Place) -> u8 {
    u8::try_from(profile << 4).unwrap_or(0) | start
}

fn unpack(byte: u8) -> Place {
    Place { profile: usize::from(byte >> 4), start: byte & 0xF }
}

impl Fleet {
    /// With nine tenths of its units in use.
    fn filled(gpus: usize) -> Self {
        let mut model = a100();
        model.profiles.retain(|profile| profile.name.attribute().is_empty());
        let table = Arc::new(Table::new(&Arc::new(model)));
        let scores = Arc::new(Scores::new(&table, &Demand::even(&table)));
        let mut pool = Pool::new(table.clone(), scores);
        for _ in 0..gpus {
            pool.add(table.empty());
        }
        let mut fleet = Self { pool, contents: vec![[0; 8]; gpus], slices: Vec::new(), random: 1 };
        let mut units = 0;
        while units * 10 < gpus * 8 * 9 {
            let Some(place) = fleet.arrive() else { break };
            units += usize::from(table.model().profiles[place.profile].size);
        }
        fleet
    }

    /// As good as any for a mix (xorshift64).
    fn next(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random >> 33).unwrap_or(0) % below.max(1)
    }

    /// One departure and one arrival; `timed` is told when each has been done, and when it began.
    fn turn(&mut self, mut timed: impl FnMut(bool, Instant)) {
        let chosen = self.next(self.slices.len());
        let begun = Instant::now();
        let (gpu, gone) = self.slices.swap_remove(chosen);
        let contents = &mut self.contents[gpu as usize];
        let count = usize::from(contents[7]);
        if let Some(at) = contents[..count].iter().position(|there| *there == gone) {
            contents[at] = contents[count - 1];
            contents[7] -= 1;
        }
        let left = contents[..usize::from(contents[7])].iter().copied();
        let state = self.pool.table().state(left.map(unpack), Mask::default());
        self.pool.set(Gpu(gpu), state);
        timed(false, begun);
        let begun = Instant::now();
        // Its room is free again, so one of its profile finds some; of another, perhaps none.
        if self.arrive().is_none() {
            self.place(unpack(gone).profile);
        }
        timed(true, begun);
    }

    fn arrive(&mut self) -> Option<Place> {
        let profile = self.next(self.pool.table().model().profiles.len());
        self.place(profile)
    }

    fn place(&mut self, profile: usize) -> Option<Place> {
        let (gpu, start) = self.pool.best(profile)?;
        let place = Place { profile, start };
        let state = self.pool.table().with(self.pool.state(gpu), place)?;
        self.pool.set(gpu, state);
        let contents = &mut self.contents[gpu.0 as usize];
        contents[usize::from(contents[7])] = pack(place);
        contents[7] += 1;
        self.slices.push((gpu.0, pack(place)));
        Some(place)
    }
}
