//! `updater`: updates an installed web server in place and cannot leave it broken.
//!
//! The map, from the ground up; a room imports only from those declared before it, also inside a layer
//! (`tests/house.rs` keeps this true). `update/mod.rs` says where `backup`, `ports` and `verify` stand.
//! Refuses to be a library for others: it exists so that the tests can reach the rooms.

#![deny(
    clippy::too_many_arguments,
    clippy::too_many_lines,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr
)]

pub mod roles;
pub mod system;
pub mod base;
pub mod app;
pub mod state;
pub mod update;
pub mod backup;
pub mod ports;
pub mod verify;
pub mod commands;
pub mod restore;
pub mod cli;
pub mod requests;
pub mod dispatch;
