//! preserve
