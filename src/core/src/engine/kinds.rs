//! The models that there are, with their rankings under what is asked for.

use std::sync::Arc;

use super::learn::Learner;
use super::score::{Demand, Scores};
use super::table::Table;
use crate::geometry::Model;

/// A model's table, and its ranking.
#[derive(Debug)]
pub struct Kind {
    /// What its GPUs can be.
    pub table: Arc<Table>,
    /// Where slices do least harm.
    pub scores: Arc<Scores>,
    /// What the ranking goes by.
    demand: Demand,
}

/// Books are compared to find out whether one has changed, and no book comes to another kind of GPUs.
impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
            || (self.table.model() == other.table.model() && self.demand == other.demand)
    }
}

impl Eq for Kind {}

impl Kind {
    fn new(table: Arc<Table>, demand: Demand) -> Self {
        Self { scores: Arc::new(Scores::new(&table, &demand)), table, demand }
    }

    /// The share of a profile, by its index in the model, in what the ranking takes to be asked for, in millionths.
    pub fn millionths(&self, profile: usize) -> u32 {
        let Demand(shares) = &self.demand;
        let share = shares.get(profile).copied().unwrap_or(0.0).clamp(0.0, 1.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share is between 0 and 1"
        )]
        let millionths = (share * 1e6).round() as u32;
        millionths
    }
}

/// The kinds of GPUs of a cluster. Copies share the tables.
#[derive(Clone, Debug, Default)]
pub struct Kinds {
    known: Arc<Vec<Arc<Kind>>>,
}

impl Kinds {
    /// The kind of a model. One that was not [met](Self::meet) before is made for the occasion, which takes a millisecond.
    pub fn of(&self, model: &Arc<Model>) -> Arc<Kind> {
        self.find(model).cloned().unwrap_or_else(|| Arc::new(fresh(model)))
    }

    fn find(&self, model: &Arc<Model>) -> Option<&Arc<Kind>> {
        let mut known = self.known.iter();
        let itself = known.clone().find(|kind| Arc::ptr_eq(kind.table.model(), model));
        itself.or_else(|| known.find(|kind| kind.table.model() == model))
    }

    /// Makes the tables of a model, if they are not there. Returns the model that stands for all that are equal to it: it is
    /// found soonest.
    pub fn meet(&mut self, model: &Arc<Model>) -> Arc<Model> {
        if let Some(known) = self.find(model) {
            return known.table.model().clone();
        }
        Arc::make_mut(&mut self.known).push(Arc::new(fresh(model)));
        model.clone()
    }

    /// Ranks by what has been learned. Nothing changes as long as no profile's share does by a fiftieth: rankings are not to
    /// waver with every request.
    pub fn follow(&mut self, learner: &Learner) {
        let demands = self.known.iter().map(|kind| learner.demand(&kind.table));
        let is_off = |(i, demand): &(usize, Demand)| differs(&self.known[*i].demand, demand);
        let off: Vec<(usize, Demand)> = demands.enumerate().filter(is_off).collect();
        for (i, demand) in off {
            let kind = &mut Arc::make_mut(&mut self.known)[i];
            *kind = Arc::new(Kind::new(kind.table.clone(), demand));
        }
    }
}

fn fresh(model: &Arc<Model>) -> Kind {
    let table = Arc::new(Table::new(model));
    let demand = Demand::even(&table);
    Kind::new(table, demand)
}

fn differs(Demand(before): &Demand, Demand(after): &Demand) -> bool {
    before.len() != after.len() || before.iter().zip(after).any(|(b, a)| (b - a).abs() >= 0.02)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::tests::{a30, a100};

    #[test]
    fn tables_are_made_once_for_a_model_and_rankings_anew_only_when_the_demand_has_changed() {
        let (model, same) = (Arc::new(a100()), Arc::new(a100()));
        let mut kinds = Kinds::default();
        kinds.meet(&model);
        kinds.meet(&same);
        let first = kinds.of(&model);
        assert!(Arc::ptr_eq(&first, &kinds.of(&same)), "the same tables, the same model");
        assert!(!Arc::ptr_eq(&first, &kinds.of(&Arc::new(a30()))));
        let mut learner = Learner::default();
        kinds.follow(&learner);
        assert!(Arc::ptr_eq(&first, &kinds.of(&model)), "nothing has been learned");
        let asked = "1g.10gb".parse().unwrap();
        learner.note(&asked, 1);
        let copy = kinds.clone();
        (0..100).for_each(|_| learner.note(&asked, 1));
        kinds.follow(&learner);
        let later = kinds.of(&model);
        assert!(!Arc::ptr_eq(&first, &later));
        assert!(Arc::ptr_eq(&first, &copy.of(&model)), "a copy stays as it was");
        let share = |kind: &Kind| kind.demand.0[kind.table.profile(&asked).unwrap()];
        assert!(share(&later) > 0.8 && share(&first) < 0.2);
        learner.note(&asked, 1);
        kinds.follow(&learner);
        assert!(Arc::ptr_eq(&later, &kinds.of(&model)), "one more changes next to nothing");
    }
}
