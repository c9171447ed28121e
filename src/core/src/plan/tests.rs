//! The plan against a small world that does what it asks for, as API server, Kueue, agents and kubelets would.

mod adjusting;
mod admitting;
mod explaining;
mod histories;
mod holders;
mod inheriting;
mod keeping_idle;
mod keeping_quotas;
mod keeping_room;
mod looking_ahead;
mod making_way;
mod mending;
mod messages;
mod placing;
mod releasing;
mod relocating;
mod shortages;
mod steering;
mod world;
