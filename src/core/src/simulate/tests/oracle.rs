//! The oracle accepts what some way to place everything anew has room for, and nothing else.

use proptest::prelude::*;

use super::*;
use crate::geometry::tests::{a30, a100};
use crate::simulate::placing::Limits;
use crate::simulate::policy::Name;

/// Whether slices of these profiles, by index in the model, go on so many GPUs, trying every place.
fn packs(model: &Model, slices: &[usize], there: &mut Vec<Vec<Slice>>) -> bool {
    let Some((&profile, rest)) = slices.split_first() else { return true };
    for gpu in 0..there.len() {
        for &start in &model.profiles[profile].starts {
            let one = slice(model, Place { profile, start });
            if model.check(&one, &there[gpu]).is_ok() {
                there[gpu].push(one);
                let packed = packs(model, rest, there);
                there[gpu].pop();
                if packed {
                    return true;
                }
            }
        }
        // Of empty GPUs, one is like another.
        if there[gpu].is_empty() {
            break;
        }
    }
    false
}

fn held(model: &Model, requests: &[&Request]) -> Vec<usize> {
    let each =
        |r: &&Request| r.totals().flat_map(|(profile, n)| (0..n).map(move |_| profile)).collect::<Vec<_>>();
    let mut all: Vec<usize> = requests.iter().flat_map(each).collect();
    all.sort_by_key(|profile| std::cmp::Reverse(model.profiles[*profile].size));
    all
}

proptest! {
    #[test]
    fn it_accepts_what_goes_on_the_gpus_in_any_way(
        which in any::<bool>(),
        steps in prop::collection::vec((0..7_usize, 1..3_u32, any::<u8>()), 1..14),
    ) {
        let mut model = if which { a100() } else { a30() };
        // Of media engines it goes by the units where it is not certain.
        model.profiles.retain(|p| p.name.attribute().is_empty());
        let inventory = inventory(&[(model.clone(), 2)]);
        let catalogue = Catalogue::new(&inventory);
        let mut oracle = Name::Oracle.policy(&catalogue, &inventory, &[], Limits::default(), 0);
        let requests: Vec<Request> =
            steps.iter().map(|(profile, pods, _)| request(0.0, 1.0, profile % model.profiles.len(), 1, *pods)).collect();
        let mut live: Vec<usize> = Vec::new();
        for (number, (_, _, leaves)) in steps.iter().enumerate() {
            if leaves % 3 == 0 && !live.is_empty() {
                let gone = live.remove(usize::from(*leaves) % live.len());
                oracle.release(u32::try_from(gone).unwrap());
            }
            let mut with: Vec<&Request> = live.iter().map(|i| &requests[*i]).collect();
            with.push(&requests[number]);
            let possible = packs(&model, &held(&model, &with), &mut vec![Vec::new(); 2]);
            prop_assert_eq!(oracle.would_fit(&requests[number]), possible);
            let mut steps = Vec::new();
            let admitted = oracle.admit(u32::try_from(number).unwrap(), &requests[number], 0.0, &mut steps);
            prop_assert_eq!(admitted, possible);
            prop_assert!(steps.is_empty());
            if admitted {
                live.push(number);
            }
            let units: u64 = live.iter().map(|i| requests[*i].units(&catalogue)).sum();
            prop_assert_eq!(oracle.used(), units);
        }
    }
}
