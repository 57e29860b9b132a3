pub mod control;
pub mod proxy;
pub mod ring;
pub mod worker;
