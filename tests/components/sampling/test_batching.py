from components.sampling.batching import powers_of_two


def test_buckets_are_powers_of_two_up_to_the_most_rows():
    assert [powers_of_two(most) for most in (1, 2, 8, 10)] == [(1,), (1, 2), (1, 2, 4, 8), (1, 2, 4, 8, 10)]
