//! The ground that every other room stands on: errors and their exit codes, paths, files that survive a power cut, questions
//! over the network, what people and programs are told.

pub mod error;
pub mod path;
pub mod head;
pub mod fsx;
pub mod digest;
pub mod background;
pub mod net;
pub mod version;
pub mod report;
