from .cluster import Cluster as Cluster
from .cost.evaluation import Evaluation as Evaluation
from .cost.evaluation import evaluate as evaluate
from .errors import InfeasibleError as InfeasibleError
from .errors import InputError as InputError
from .errors import LimitError as LimitError
from .errors import PlacementError as PlacementError
from .exporters import get_exporter as get_exporter
from .migration import MigrationPlan as MigrationPlan
from .migration import migration_plan as migration_plan
from .model import Model as Model
from .options import Options as Options
from .pipeline.solve import solve as solve
from .placement_json import load_placement as load_placement
from .placement_json import save_placement as save_placement
from .placement_map import Placement as Placement
from .solution import Solution as Solution
from .solution import solution_document as solution_document
from .traces.count import count as count
from .traces.trace import Trace as Trace
from .traces.trace import open_trace as open_trace
from .workload import Workload as Workload

__version__: str
