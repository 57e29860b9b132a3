pub mod counters;
pub mod op;
pub mod record;
