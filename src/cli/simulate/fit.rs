//! What if so much more came?

use std::fmt::Write;

use serde::Serialize;
use slicegate_core::simulate::counts::Counts;
use slicegate_core::simulate::demand::{Ask, Request};
use slicegate_core::simulate::inventory::{Catalogue, Inventory};
use slicegate_core::simulate::placing::Limits;
use slicegate_core::simulate::policy::Name;

use super::{Args, Error, report, trace};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    inventory: Vec<report::Gpus>,
    units: u64,
    units_in_use: u64,
    fits: Vec<Fit>,
}

/// One after another: what the former took is gone.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Fit {
    profile: String,
    wanted: u32,
    /// With what is there where it is.
    as_it_is: u32,
    /// With the moves that are allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    with_moves: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    moves: Option<u64>,
    /// If everything that is there were packed anew.
    repacked: u32,
}

/// The most slices that are tried.
const MOST: u32 = 1_000_000;

/// Says how many slices of each profile would fit.
pub fn run(
    args: &Args,
    catalogue: &Catalogue,
    inventory: &Inventory,
    limits: Limits,
) -> Result<String, Error> {
    let wanted: Vec<(Ask, String)> =
        args.fit.iter().map(|text| parse(text, catalogue)).collect::<Result<_, _>>()?;
    let (as_it_is, _) = place(catalogue, inventory, &wanted, Limits::default());
    let moving = (limits.moves > 0).then(|| place(catalogue, inventory, &wanted, limits));
    let mut counts = Counts::new(catalogue, inventory);
    let fits = wanted.iter().enumerate().map(|(index, (ask, profile))| Fit {
        profile: profile.clone(),
        wanted: ask.count,
        as_it_is: as_it_is[index],
        with_moves: moving.as_ref().map(|(fits, _)| fits[index]),
        moves: moving.as_ref().map(|(_, moves)| moves[index]),
        repacked: (0..ask.count)
            .take_while(|_| counts.admit(&single(*ask)).is_some())
            .count()
            .try_into()
            .unwrap_or(u32::MAX),
    });
    let present = inventory.gpus.iter().flat_map(|unit| &unit.present);
    let answer = Answer {
        inventory: report::gpus(catalogue),
        units: catalogue.units(),
        units_in_use: present.map(|present| u64::from(present.slice.size)).sum(),
        fits: fits.collect(),
    };
    Ok(if args.json { report::to_json(&answer) } else { answer.table(limits) })
}

fn parse(text: &str, catalogue: &Catalogue) -> Result<(Ask, String), Error> {
    let wrong = |reason: String| Error::Input(format!("--fit {text}: {reason}"));
    let (profile, count) =
        text.split_once('=').ok_or_else(|| wrong("expected PROFILE=N, as in 3g.40gb=20".to_owned()))?;
    let count = count.parse().ok().filter(|count| (1..=MOST).contains(count));
    let count = count.ok_or_else(|| wrong(format!("expected a number from 1 to {MOST} after =")))?;
    let index = catalogue.find(profile).ok_or_else(|| wrong(trace::unknown(profile, catalogue)))?;
    Ok((Ask { profile: index, count }, profile.to_owned()))
}

/// One slice that stays.
fn single(ask: Ask) -> Request {
    let slices = vec![Ask { count: 1, ..ask }];
    Request { id: "fit".into(), arrival: 0.0, duration: None, slices, pods: 1, drawn: 1.0 }
}

/// How many of each are placed, and how many moves that takes.
fn place(
    catalogue: &Catalogue,
    inventory: &Inventory,
    wanted: &[(Ask, String)],
    limits: Limits,
) -> (Vec<u32>, Vec<u64>) {
    let mut policy = Name::Slicegate.policy(catalogue, inventory, &[], limits, 0);
    let mut number = 0;
    let mut one = |(ask, _): &(Ask, String)| {
        let mut steps = Vec::new();
        let mut placed = 0;
        while placed < ask.count && policy.admit(number, &single(*ask), 0.0, &mut steps) {
            number += 1;
            placed += 1;
        }
        (placed, steps.iter().map(|step| u64::from(step.moved)).sum::<u64>())
    };
    wanted.iter().map(&mut one).unzip()
}

impl Answer {
    fn table(&self, limits: Limits) -> String {
        let mut text = format!(
            "{}, {} of {} units in use\n\n",
            report::inventory_line(&self.inventory),
            self.units_in_use,
            self.units
        );
        for fit in &self.fits {
            let Fit { profile, wanted, as_it_is, with_moves, moves, repacked } = fit;
            let verdict = if as_it_is >= wanted { "fit" } else { "do not fit" };
            let _ = writeln!(text, "{wanted} × {profile} {verdict}:");
            let _ = writeln!(text, "  {as_it_is:>6}  with everything where it is");
            if let (Some(with_moves), Some(moves)) = (with_moves, moves) {
                let _ = writeln!(
                    text,
                    "  {with_moves:>6}  with at most {} moves for each, {moves} in all",
                    limits.moves
                );
            }
            let _ = writeln!(text, "  {repacked:>6}  if everything were packed anew");
        }
        text
    }
}
