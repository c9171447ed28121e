use std::collections::BTreeSet;

use super::*;
use crate::geometry::Slice;
use crate::geometry::tests::{a30, a100, free_starts, rtx_pro_6000};

/// The counts by profile that go on one GPU, found by trying every start.
fn on_one(model: &Model) -> BTreeSet<Vec<u32>> {
    let mut found = BTreeSet::new();
    let mut frontier: Vec<Vec<Slice>> = vec![Vec::new()];
    let mut seen: BTreeSet<Vec<Slice>> = BTreeSet::new();
    while let Some(present) = frontier.pop() {
        let count =
            |p: &Profile| u32::try_from(present.iter().filter(|s| s.profile == p.name).count()).unwrap();
        found.insert(model.profiles.iter().map(count).collect());
        for profile in &model.profiles {
            for start in free_starts(profile, &present) {
                let mut more = present.clone();
                more.push(Slice { start, size: profile.size, profile: profile.name.clone() });
                more.sort();
                if seen.insert(more.clone()) {
                    frontier.push(more);
                }
            }
        }
    }
    found
}

fn sums(left: &BTreeSet<Vec<u32>>, right: &BTreeSet<Vec<u32>>) -> BTreeSet<Vec<u32>> {
    let add = |a: &Vec<u32>, b: &Vec<u32>| a.iter().zip(b).map(|(a, b)| a + b).collect();
    left.iter().flat_map(|a| right.iter().map(move |b| add(a, b))).collect()
}

/// Every vector of counts up to these.
fn vectors(most: &[u32]) -> Vec<Vec<u32>> {
    most.iter().fold(vec![Vec::new()], |all, most| {
        all.iter().flat_map(|v| (0..=*most).map(move |n| v.iter().copied().chain([n]).collect())).collect()
    })
}

/// Compares with every way to fill up to `gpus` GPUs. Returns how often the answer was given.
fn compare(model: &Model, gpus: u32, most: impl Fn(u32, &Profile) -> u32) -> usize {
    let one = on_one(model);
    let mut possible = BTreeSet::from([vec![0; model.profiles.len()]]);
    let mut answers = 0;
    for gpus in 1..=gpus {
        possible = sums(&possible, &one);
        let most: Vec<u32> = model.profiles.iter().map(|p| most(gpus, p)).collect();
        for counts in vectors(&most) {
            if let Some(answer) = fits(model, &counts, gpus) {
                assert_eq!(answer, possible.contains(&counts), "{counts:?} on {gpus} × {}", model.name);
                answers += 1;
            }
        }
    }
    answers
}

#[test]
fn on_eight_units_the_answer_is_that_of_every_way_to_place_them() {
    let mut plain = a100();
    plain.profiles.retain(|p| p.name.attribute().is_empty());
    let answers = compare(&plain, 2, |gpus, p| gpus * u32::from(p.max_count) + 1);
    assert!(answers > 30_000, "{answers}");
    compare(&a100(), 1, |_, p| u32::from(p.max_count) + 1);
}

#[test]
fn where_sizes_divide_one_another_the_answer_is_that_of_every_way_to_place_them() {
    compare(&a30(), 2, |gpus, p| gpus * u32::from(p.max_count) + 1);
    let mut plain = rtx_pro_6000();
    plain.profiles.retain(|p| !p.name.attribute().starts_with("+me"));
    compare(&plain, 1, |_, p| u32::from(p.max_count) + 1);
}

#[test]
fn a_model_of_another_kind_is_not_judged() {
    let mut odd = a100();
    odd.profiles[4].starts = vec![1, 4];
    assert_eq!(fits(&odd, &[1, 0, 0, 0, 0, 0, 0], 1), None);
    let all = rtx_pro_6000();
    let counts: Vec<u32> = all.profiles.iter().map(|p| u32::from(p.name.attribute() == "+me.all")).collect();
    assert_eq!(fits(&all, &counts, 2), None);
}
