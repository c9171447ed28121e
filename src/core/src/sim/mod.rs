//! A whole cluster in one process, with a clock of its own: what surrounds the decisions, to see that they hold whatever
//! goes wrong around them.
//!
//! * [`api_server`]: objects, versions, preconditions, watches.

pub mod api_server;
