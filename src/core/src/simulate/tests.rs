use std::sync::Arc;

use super::choose::{Choose, Wanted};
use super::demand::{Ask, Request};
use super::fleet::{Fleet, Owner, Use};
use super::inventory::{Catalogue, Inventory};
use crate::engine::pool::Gpu;
use crate::engine::relocate::Placed;
use crate::engine::table::Place;
use crate::geometry::{Model, Slice};

mod courses;
mod oracle;
mod rules;

fn inventory(models: &[(Model, u32)]) -> Inventory {
    let mut inventory = Inventory::default();
    for (model, gpus) in models {
        inventory.add(&Arc::new(model.clone()), *gpus);
    }
    inventory
}

fn request(arrival: f64, duration: f64, profile: usize, count: u32, pods: u32) -> Request {
    let slices = vec![Ask { profile, count }];
    Request { id: "r".into(), arrival, duration: Some(duration), slices, pods, drawn: 0.0 }
}

fn slice(model: &Model, place: Place) -> Slice {
    let profile = &model.profiles[place.profile];
    Slice { start: place.start, size: profile.size, profile: profile.name.clone() }
}

/// Every place on every GPU where one more slice of a profile of the catalogue goes, asking the model's rules.
fn legal(fleet: &Fleet, contents: &[Vec<Place>], profile: usize) -> Vec<(Gpu, Place)> {
    let mut found = Vec::new();
    for gpu in fleet.gpus() {
        let model = fleet.table(gpu).model();
        let Some(profile) = fleet.catalogue().offers()[profile].of_model[fleet.model(gpu)] else { continue };
        let there: Vec<Slice> = contents[gpu.0 as usize].iter().map(|place| slice(model, *place)).collect();
        for &start in &model.profiles[profile].starts {
            let place = Place { profile, start };
            if model.check(&slice(model, place), &there).is_ok() {
                found.push((gpu, place));
            }
        }
    }
    found
}

/// A fleet with slices at random places, and what is where.
fn filled(inventory: &Inventory, choices: &[(usize, usize)]) -> (Fleet, Vec<Vec<Place>>) {
    let mut fleet = Fleet::new(&Catalogue::new(inventory), inventory);
    let mut contents = vec![Vec::new(); inventory.gpus.len()];
    for (number, (profile, choice)) in (0..).zip(choices) {
        let open = legal(&fleet, &contents, profile % fleet.catalogue().offers().len());
        if open.is_empty() {
            continue;
        }
        let (gpu, place) = open[choice % open.len()];
        let owner = Owner { request: number, slice: 0 };
        let placed = Placed { place, movable: true };
        assert!(fleet.put(gpu, Use { owner, placed, ends: f64::INFINITY }), "what is legal fits");
        contents[gpu.0 as usize].push(place);
    }
    (fleet, contents)
}

fn chosen(choose: &mut impl Choose, fleet: &Fleet, profile: usize) -> Option<(Gpu, Place)> {
    let wanted = Wanted { profile, node: None, now: 0.0, ends: f64::INFINITY };
    choose.choose(fleet, &wanted).map(|spot| (spot.gpu, spot.place))
}
