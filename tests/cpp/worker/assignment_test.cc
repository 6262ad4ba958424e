// SPDX-License-Identifier: Apache-2.0
#include "worker/assignment.h"

#include <doctest/doctest.h>

using sw::assign_queues;
using sw::kUnassigned;
using sw::QueueToAssign;
using sw::spread_pays;
using sw::spread_queues;

TEST_CASE("assignment: new queues go to the least loaded worker") {
  struct Row {
    const char* situation;
    std::vector<QueueToAssign> queues;
    uint32_t workers;
    std::vector<int> expected;
  };
  const std::vector<Row> rows = {
      {"one worker takes all", {{}, {}, {}}, 1, {0, 0, 0}},
      {"no load known: dealt by number", {{}, {}, {}, {}}, 2, {0, 1, 0, 1}},
      {"a pinned queue goes where it must", {{.pinned = 1}, {}}, 2, {1, 0}},
      {"a pin overrules the present worker", {{.pinned = 0, .current = 1}}, 2, {0}},
      {"who has a worker stays, however loaded", {{.current = 0, .load = 900}, {.current = 0, .load = 800}}, 2, {0, 0}},
      {"a newcomer avoids the busy worker", {{.current = 0, .load = 900}, {}}, 2, {0, 1}},
      {"nothing to assign", {}, 2, {}},
  };
  for (const Row& row : rows) {
    CAPTURE(row.situation);
    CHECK(assign_queues(row.queues, row.workers) == row.expected);
  }
}

TEST_CASE("assignment: a fresh spread deals the heaviest first") {
  const std::vector<QueueToAssign> queues = {{.current = 0, .load = 10},
                                             {.current = 0, .load = 50},
                                             {.current = 0, .load = 40},
                                             {.pinned = 0, .current = 0, .load = 5}};
  CHECK(spread_queues(queues, 2) == std::vector<int>{0, 1, 0, 0});
}

TEST_CASE("assignment: a spread is worth it only when the busiest worker gains enough") {
  const std::vector<QueueToAssign> lopsided = {{.current = 0, .load = 50}, {.current = 0, .load = 45}};
  CHECK(spread_pays(lopsided, spread_queues(lopsided, 2), 2, 25));
  const std::vector<QueueToAssign> light = {{.current = 0, .load = 12}, {.current = 0, .load = 12}};
  CHECK_FALSE(spread_pays(light, spread_queues(light, 2), 2, 25));
  const std::vector<QueueToAssign> fair = {{.current = 0, .load = 90}, {.current = 1, .load = 90}};
  CHECK_FALSE(spread_pays(fair, spread_queues(fair, 2), 2, 25));
}

TEST_CASE("assignment: what was spread stays, though loads go up and down") {
  struct Row {
    const char* situation;
    std::vector<QueueToAssign> queues;
    bool pays;
  };
  const std::vector<Row> rows = {
      {"two equal ones apart", {{.current = 0, .load = 45}, {.current = 1, .load = 45}}, false},
      {"one of them a good deal heavier", {{.current = 0, .load = 90}, {.current = 1, .load = 20}}, false},
      {"the heavier one changed", {{.current = 0, .load = 20}, {.current = 1, .load = 90}}, false},
      {"a third one too small to matter",
       {{.current = 0, .load = 45}, {.current = 1, .load = 45}, {.current = 0, .load = 20}},
       false},
      {"all of them idle", {{.current = 0}, {.current = 0}}, false},
      {"two heavy ones met on one worker",
       {{.current = 0, .load = 45}, {.current = 0, .load = 45}, {.current = 1, .load = 5}},
       true},
      {"they may not part", {{.pinned = 0, .current = 0, .load = 45}, {.pinned = 0, .current = 0, .load = 45}}, false},
  };
  for (const Row& row : rows) {
    CAPTURE(row.situation);
    CHECK(spread_pays(row.queues, spread_queues(row.queues, 2), 2, 25) == row.pays);
  }
}
