//! The conformance suite: what CSI v1.12 and its callers (kubelet, external-provisioner,
//! external-resizer) hold a driver to, one rule a function, each driven through a real gRPC client over
//! a unix socket. A run brings a [`fixture::Machine`]; the rules don't know which.

// Not every run uses every helper.
#![allow(dead_code)]

pub mod controller;
pub mod fixture;
pub mod guest;
pub mod identity;
pub mod node;

/// Hands every rule to a macro, as `module::rule`.
macro_rules! every_rule {
    ($with:ident) => {
        $with! {
            identity::the_driver_says_who_it_is_and_what_it_can,
            identity::probe_and_health_say_whether_it_is_ready,
            identity::reflection_lists_the_services,
            controller::declared_capabilities_are_those_that_work,
            controller::controller_calls_without_a_required_field_are_invalid,
            controller::a_repeated_create_answers_with_the_same_volume,
            controller::a_name_that_is_taken_by_another_volume_exists,
            controller::names_of_any_kind_work,
            controller::capacity_is_the_next_size_that_can_be,
            controller::what_the_driver_does_not_know_is_invalid,
            controller::a_place_elsewhere_has_no_room,
            controller::a_create_without_room_is_exhausted_and_leaves_nothing,
            controller::a_deleted_volume_is_gone_and_stays_deleted,
            controller::a_volume_is_shown_with_its_condition,
            controller::a_validation_confirms_only_what_is_so,
            controller::volumes_are_listed_in_pages,
            controller::capacity_is_what_is_free_in_bytes,
            controller::an_expansion_gives_the_next_size_or_says_why_not,
            node::the_node_says_where_it_is_and_what_it_can,
            node::node_calls_without_a_required_field_are_invalid,
            node::an_unknown_volume_is_not_found,
            node::a_capability_that_these_volumes_lack_is_a_failed_precondition,
            node::an_ext4_volume_lives,
            node::an_xfs_volume_lives,
            node::a_block_volume_lives,
            node::an_ephemeral_volume_lives_and_dies_with_its_publication,
            node::options_of_the_class_are_used,
            node::an_incompatible_repeat_exists_already,
            node::a_publication_needs_a_staged_volume,
            node::a_read_only_publication_cannot_be_written,
            node::a_second_target_is_for_modes_with_several_users,
            node::what_is_not_empty_is_never_removed,
            node::a_block_volume_grows_under_its_pod,
            node::an_xfs_grows_under_its_pod,
            node::an_ext4_grows_under_its_pod_or_names_the_privilege,
            node::what_grew_while_unmounted_is_grown_at_its_next_stage,
            node::a_formatted_volume_that_probes_blank_is_for_a_person,
            node::what_a_tenant_wrote_is_never_formatted,
            node::a_mkfs_that_was_cut_runs_again,
        }
    };
}
pub(crate) use every_rule;
