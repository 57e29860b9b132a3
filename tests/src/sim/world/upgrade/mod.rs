//! Upgrades: the conversations in which one process hands its sessions and flows to the next. What
//! the control threads of both do stands in `giving` and `taking`, as in
//! `appliance/src/control/upgrade/`. Each word comes late, and between any two of them either
//! process may die, hang, or refuse.

mod conversation;
mod giving;
pub mod state;
mod taking;
