pub mod control;
pub mod proxy;
