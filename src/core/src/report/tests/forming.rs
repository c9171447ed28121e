//! What can be formed, against every way to cut the GPUs.

use std::collections::BTreeSet;

use super::super::desk::Desk;
use super::*;
use crate::geometry::tests::{a30, a100, free_starts, rtx_pro_6000};

/// Every set of slices that one GPU can hold.
fn layouts(model: &Model) -> Vec<Vec<Slice>> {
    let mut found = BTreeSet::from([Vec::new()]);
    let mut frontier: Vec<Vec<Slice>> = vec![Vec::new()];
    while let Some(present) = frontier.pop() {
        for profile in &model.profiles {
            for start in free_starts(profile, &present) {
                let mut more = present.clone();
                more.push(Slice { start, size: profile.size, profile: profile.name.clone() });
                more.sort();
                if found.insert(more.clone()) {
                    frontier.push(more);
                }
            }
        }
    }
    found.into_iter().collect()
}

fn counts(model: &Model, layout: &[Slice]) -> Vec<u64> {
    model.profiles.iter().map(|p| layout.iter().filter(|s| s.profile == p.name).count() as u64).collect()
}

fn sums(one: &BTreeSet<Vec<u64>>, other: &BTreeSet<Vec<u64>>) -> BTreeSet<Vec<u64>> {
    let add = |a: &Vec<u64>, b: &Vec<u64>| a.iter().zip(b).map(|(a, b)| a + b).collect();
    one.iter().flat_map(|a| other.iter().map(move |b| add(a, b))).collect()
}

/// Every vector of counts that so many GPUs can hold.
fn formable(model: &Model, gpus: u32) -> BTreeSet<Vec<u64>> {
    let one: BTreeSet<Vec<u64>> = layouts(model).iter().map(|layout| counts(model, layout)).collect();
    (0..gpus).fold(BTreeSet::from([vec![0; model.profiles.len()]]), |all, _| sums(&all, &one))
}

fn area_of(world: &World, check: impl FnOnce(&super::super::area::Area<'_>)) {
    let desk = Desk::new(NOW, world);
    check(&desk.area(&desk.nodes["p"]));
}

#[test]
fn what_a30s_can_form_together_is_what_every_way_to_cut_them_gives() {
    let model = a30();
    for gpus in 1..=2 {
        let formable = formable(&model, gpus);
        let world = world(vec![node("n", "p", &model, gpus)], &[]);
        area_of(&world, |area| {
            for (i, profile) in model.profiles.iter().enumerate() {
                let most = formable.iter().filter(|c| c.iter().enumerate().all(|(j, n)| j == i || *n == 0));
                assert_eq!(
                    area.possible(&profile.name),
                    most.map(|c| c[i]).max().unwrap(),
                    "{}",
                    profile.name
                );
            }
            let gib = |c: &Vec<u64>| -> u64 {
                let each = model.profiles.iter().zip(c);
                each.map(|(p, n)| u64::from(p.name.memory_gib().unwrap()) * n).sum()
            };
            assert_eq!(area.possible_gib(), formable.iter().map(gib).max().unwrap());
            // One more of each than there can be, so that what is impossible is asked about, too.
            let most: Vec<u64> = model.profiles.iter().map(|p| area.possible(&p.name) + 1).collect();
            let mut asked = vec![Vec::new()];
            for most in most {
                let more = |c: &Vec<u64>| -> Vec<Vec<u64>> {
                    (0..=most).map(|n| c.iter().copied().chain([n]).collect()).collect()
                };
                asked = asked.iter().flat_map(more).collect();
            }
            let mut unknown = 0;
            for counts in &asked {
                let wanted = model.profiles.iter().zip(counts).map(|(p, n)| (p.name.clone(), *n)).collect();
                let possible = formable.contains(counts);
                match area.together(&wanted) {
                    Together::Yes => assert!(possible, "{counts:?} on {gpus}"),
                    Together::No => assert!(!possible, "{counts:?} on {gpus}"),
                    Together::Unknown => unknown += 1,
                }
            }
            // Only where several want the media extensions.
            assert!(unknown * 3 < asked.len(), "{unknown} of {}", asked.len());
            assert!(gpus > 1 || unknown == 0);
        });
    }
}

#[test]
fn what_is_free_on_a30s_is_what_every_way_to_cut_them_leaves() {
    let mut model = a30();
    model.profiles.retain(|p| p.name.attribute().is_empty());
    let (layouts, formable) = (layouts(&model), formable(&model, 2));
    for first in &layouts {
        for second in &layouts {
            let mut node = node("n", "p", &model, 2);
            let given = first.iter().map(|s| (0, s.clone())).chain(second.iter().map(|s| (1, s.clone())));
            give(&mut node, "w", &given.collect::<Vec<_>>());
            let world = world(vec![node], &[]);
            let there: Vec<u64> =
                counts(&model, first).iter().zip(counts(&model, second)).map(|(a, b)| a + b).collect();
            area_of(&world, |area| {
                for (i, profile) in model.profiles.iter().enumerate() {
                    let with = |n: u64| {
                        let mut counts = there.clone();
                        counts[i] += n;
                        counts
                    };
                    let most = (0..99).take_while(|n| formable.contains(&with(*n))).last().unwrap();
                    assert_eq!(
                        area.free(&profile.name),
                        Some(most),
                        "{} beside {first:?} {second:?}",
                        profile.name
                    );
                    let beside = |present: &Vec<Slice>| {
                        let above = layouts.iter().filter(|other| present.iter().all(|s| other.contains(s)));
                        let only = |o: &&Vec<Slice>| {
                            o.iter().all(|s| s.profile == profile.name || present.contains(s))
                        };
                        above.filter(only).map(|o| (o.len() - present.len()) as u64).max().unwrap()
                    };
                    let least = area.free_as_it_is(&profile.name);
                    assert_eq!(
                        least,
                        beside(first) + beside(second),
                        "{} beside {first:?} {second:?}",
                        profile.name
                    );
                    assert!(least <= most);
                }
            });
        }
    }
}

#[test]
fn what_is_free_with_nothing_moved_is_known_though_media_engines_are_in_it() {
    let mut n = node("n", "p", &a30(), 3);
    give(&mut n, "w", &[(0, slice("4g.24gb", 0, 4)), (1, slice("1g.6gb+me", 0, 1))]);
    area_of(&world(vec![n], &[]), |area| {
        assert_eq!(area.free(&profile("1g.6gb")), Some(7));
        assert_eq!(area.free_as_it_is(&profile("1g.6gb+me")), 1);
    });
    area_of(&world(vec![node("n", "p", &a30(), 3)], &[]), |area| {
        assert_eq!(area.free(&profile("1g.6gb+me")), Some(3), "one on each");
    });
}

#[test]
fn models_of_one_shape_are_taken_together_and_others_are_not_mixed_up() {
    let mut h100 = a100();
    h100.name = "NVIDIA H100 80GB HBM3".into();
    for p in &mut h100.profiles {
        p.memory_mib += 100;
    }
    let wanted = |list: &[(&str, u64)]| list.iter().map(|(name, n)| (profile(name), *n)).collect();
    let same = world(vec![node("a", "p", &a100(), 1), node("h", "p", &h100, 1)], &[]);
    area_of(&same, |area| {
        assert_eq!(area.possible(&profile("3g.40gb")), 4);
        assert_eq!(area.together(&wanted(&[("7g.80gb", 1), ("3g.40gb", 2)])), Together::Yes);
        assert_eq!(
            area.together(&wanted(&[("7g.80gb", 1), ("3g.40gb", 1), ("4g.40gb", 1), ("1g.10gb", 1)])),
            Together::No
        );
        assert_eq!(area.together(&wanted(&[("4g.40gb", 1), ("3g.40gb", 3)])), Together::Yes);
        assert_eq!(area.together(&wanted(&[("4g.40gb", 2), ("3g.40gb", 2), ("1g.10gb", 1)])), Together::No);
    });
    let apart = world(
        vec![node("a", "p", &a100(), 1), node("s", "p", &a30(), 1), node("r", "p", &rtx_pro_6000(), 1)],
        &[],
    );
    area_of(&apart, |area| {
        assert_eq!(area.models().len(), 3);
        assert_eq!(area.possible_gib(), 80 + 24 + 96);
        assert_eq!(area.units(), 8 + 4 + 12);
        assert_eq!(area.together(&wanted(&[("7g.80gb", 1), ("4g.24gb", 1), ("4g.96gb", 1)])), Together::Yes);
        assert_eq!(area.together(&wanted(&[("7g.80gb", 1), ("1g.6gb", 4), ("2g.12gb", 1)])), Together::No);
    });
    // Two models that offer a profile of the same name and are cut in different ways.
    let mut odd = a100();
    odd.profiles.retain(|p| p.name.as_str() == "3g.40gb" || p.name.as_str() == "7g.80gb");
    let both = world(vec![node("a", "p", &a100(), 1), node("o", "p", &odd, 1)], &[]);
    area_of(&both, |area| {
        assert_eq!(area.possible(&profile("3g.40gb")), 4);
        assert_eq!(area.together(&wanted(&[("3g.40gb", 4)])), Together::Unknown);
        assert_eq!(area.together(&wanted(&[("3g.40gb", 5)])), Together::No);
        assert_eq!(area.together(&wanted(&[("1g.10gb", 7)])), Together::Yes);
    });
}

#[test]
fn what_is_not_in_service_is_possible_and_not_free() {
    let mut cordoned = node("c", "p", &a30(), 1);
    cordoned.host.as_mut().unwrap().traits.unschedulable = true;
    let mut lost = node("l", "p", &a30(), 1);
    lost.mig.as_mut().unwrap().ready = false;
    let mut broken = node("b", "p", &a30(), 2);
    broken.mig.as_mut().unwrap().gpus.values_mut().next().unwrap().usable = false;
    let mut strange = node("s", "p", &a30(), 1);
    let uuid = strange.mig.as_ref().unwrap().gpus.keys().next().unwrap().clone();
    strange.mig.as_mut().unwrap().foreign.push((uuid, slice("1g.6gb", 1, 1)));
    let world = world(vec![cordoned, lost, broken, strange], &[]);
    area_of(&world, |area| {
        assert_eq!(area.possible(&profile("1g.6gb")), 16, "an unhealthy GPU forms nothing");
        assert_eq!(area.free(&profile("1g.6gb")), Some(4 + 3));
        assert_eq!(area.free(&profile("2g.12gb")), Some(2 + 1), "what is foreign stays where it is");
        assert_eq!((area.units(), area.free_units()), (16, 7));
        assert_eq!((area.possible_gib(), area.free_gib()), (96, 24 + 18));
    });
}
