//! `updater`: updates an installed web server in place and cannot leave it broken.
//!
//! The map, from the ground up; a module imports only from those declared before it
//! (`tests/house.rs` keeps this true).
//! Refuses to be a library for others: it exists so that the tests can reach the rooms.

// ground
pub mod error;
pub mod os;
pub mod path;
pub mod app;
pub mod fsx;
pub mod net;
pub mod lock;
pub mod report;
// records on disk
pub mod journal;
pub mod receipt;
pub mod settings;
pub mod history;
// pure rules
pub mod carry;
pub mod merge;
pub mod version;
// whose file is it
pub mod ownership;
// what every command is given
pub mod context;
// stages, in pipeline order
pub mod fetch;
pub mod bundle;
pub mod ports;
pub mod server;
pub mod escape;
pub mod owner;
pub mod plan;
pub mod staging;
pub mod backup;
pub mod swap;
pub mod verify;
pub mod hooks;
pub mod health;
pub mod rollback;
// commands
pub mod recover;
pub mod apply;
pub mod adopt;
pub mod inspect;
pub mod follow;
pub mod restore;
pub mod init;
pub mod shim;
pub mod doctor;
// entry
pub mod cli;
pub mod dispatch;
