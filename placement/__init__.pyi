from .core.cluster import Cluster as Cluster
from .core.migration import MigrationPlan as MigrationPlan
from .core.migration import migration_plan as migration_plan
from .core.model import Model as Model
from .core.placement import Placement as Placement
from .cost.evaluation import Evaluation as Evaluation
from .cost.evaluation import evaluate as evaluate
from .cost.steps.replay import StepCost as StepCost
from .cost.steps.replay import evaluate_steps as evaluate_steps
from .documents.placement import load_placement as load_placement
from .documents.placement import save_placement as save_placement
from .errors import InfeasibleError as InfeasibleError
from .errors import InputError as InputError
from .errors import LimitError as LimitError
from .errors import PlacementError as PlacementError
from .exporters import get_exporter as get_exporter
from .pipeline.solution import Solution as Solution
from .pipeline.solution import solution_document as solution_document
from .pipeline.solve import solve as solve
from .solvers.options import Options as Options
from .traces.trace import Trace as Trace
from .traces.trace import open_trace as open_trace
from .workload.count import count as count
from .workload.workload import Workload as Workload

__version__: str
