/** What the tfjs-node facades do before tfjs-node is loaded. */
import {platform} from '#platform';
import {findTensorflowFolder} from './find_folder.js';
import {openPrepared, redirectTfjsNode} from './redirect_binding.js';
import {notSetUp} from './tensorflow_errors.js';
import {findTfjsNode, stockBinding, type TfjsNodeName} from './tfjs_node_package.js';

/**
 * Takes the prepared folder where there is one, and tfjs-node's own binding where that was installed.
 * A package that is not installed at all is left to Node's own message.
 * @throws SageAttentionError `tensorflow-not-set-up` when there is neither, and what `tfjs-sage-attention/tensorflow` throws.
 */
export function prepareFacade(name: TfjsNodeName): void {
  const {folder} = findTensorflowFolder();
  if (folder !== null) {
    redirectTfjsNode(openPrepared(folder));
    return;
  }
  const found = findTfjsNode([platform.packageRoot ?? process.cwd()], [name]);
  if (found === null || stockBinding(found) !== null) return;
  throw notSetUp(
    `${name} ${found.version} has no native binding (${found.folder}/lib), and there is no prepared TensorFlow.`,
  );
}
