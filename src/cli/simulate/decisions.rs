//! Every placement and move, for others to check.

use serde::Serialize;
use slicegate_core::simulate::demand::Request;
use slicegate_core::simulate::inventory::Inventory;
use slicegate_core::simulate::policy::{Name, Step};

/// The lines of one policy on one seed. Lines of one `time` and one `for` are one step: what is moved leaves its place before anything
/// takes one.
pub struct Decisions<'a> {
    policy: Name,
    seed: u64,
    inventory: &'a Inventory,
    requests: &'a [Request],
    /// By request: when it was placed.
    placed: Vec<f64>,
    /// Moves, until it is known for whom.
    moved: Vec<Line<'a>>,
    text: String,
}

#[derive(Serialize)]
struct Line<'a> {
    policy: &'static str,
    seed: u64,
    /// The request's id; for what was there from the beginning, its number after `present-`.
    id: String,
    /// Which slice of the request.
    slice: u32,
    time: f64,
    /// The GPU, by its place in the inventory, from 0.
    gpu: u32,
    node: &'a str,
    profile: &'a str,
    start: u8,
    moved: bool,
    /// The request for which it was done.
    r#for: String,
    /// When it ends; never, if there is nothing.
    until: Option<f64>,
}

impl<'a> Decisions<'a> {
    /// No line yet.
    pub fn new(policy: Name, seed: u64, inventory: &'a Inventory, requests: &'a [Request]) -> Self {
        let placed = vec![0.0; requests.len()];
        Self { policy, seed, inventory, requests, placed, moved: Vec::new(), text: String::new() }
    }

    /// A placement or a move; moves come before what they were made for.
    pub fn note(&mut self, now: f64, step: &Step) {
        let Some(unit) = self.inventory.gpus.get(step.gpu.0 as usize) else { return };
        let number = step.owner.request as usize;
        let request = self.requests.get(number);
        if let Some(placed) = self.placed.get_mut(number).filter(|_| !step.moved) {
            *placed = now;
        }
        let id = request.map_or_else(|| format!("present-{}", step.owner.slice), |r| r.id.to_string());
        let line = Line {
            policy: self.policy.as_str(),
            seed: self.seed,
            id: id.clone(),
            slice: if request.is_some() { step.owner.slice } else { 0 },
            time: now,
            gpu: step.gpu.0,
            node: &unit.node,
            profile: unit.model.profiles[step.place.profile].name.as_str(),
            start: step.place.start,
            moved: step.moved,
            r#for: String::new(),
            until: request.and_then(|r| r.duration).map(|duration| self.placed[number] + duration),
        };
        if step.moved {
            self.moved.push(line);
            return;
        }
        let moved = std::mem::take(&mut self.moved);
        for line in moved.into_iter().chain([line]) {
            let line = Line { r#for: id.clone(), ..line };
            // Numbers and text always are JSON.
            self.text.push_str(&serde_json::to_string(&line).unwrap_or_default());
            self.text.push('\n');
        }
    }

    /// All lines.
    pub fn text(self) -> String {
        self.text
    }
}
